"""What the layers of a graph give on the device: an engine built for that alone, as all engines are."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from sbs_deploy.engine.base import FloatArray
from sbs_deploy.engine.tensorrt import engine_from_onnx
from sbs_deploy.engine.trt_config import built_with
from sbs_deploy.engine.trt_runtime import TensorRTEngine
from sbs_deploy.targets import Target, require_module

GraphRunner = Callable[[onnx.ModelProto, FloatArray], Mapping[str, FloatArray]]


def graph_runner(target: Target, precision: str, details: Mapping[str, Any]) -> GraphRunner:
    """A function that builds an engine of a graph and gives all its outputs for images (N, C, H, W).

    Args:
        details: of the manifest of the engine in question; it is built with the same settings.
    """

    def run(model: onnx.ModelProto, images: FloatArray) -> Mapping[str, FloatArray]:
        profile, settings = built_with(details, "the engine")
        built = engine_from_onnx(
            require_module(target),
            model.SerializeToString(),
            "the graph with its layers as outputs",
            profile,
            details.get("compute_capabilities", ()),
            settings,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layers.engine"
            path.write_bytes(built.plan)
            with TensorRTEngine(path, target=target, precision=precision, cuda_graph=False) as engine:
                return engine.outputs(images)

    return run
