"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one backend, the module chosen by name."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from sbs_deploy.backends.base import ForAnotherMachine
from sbs_deploy.backends.compatibility import version_numbers
from sbs_deploy.backends.request import RTX_COMPUTE_CAPABILITIES, Request, built_with, check_settings
from sbs_deploy.backends.runtime import Runtime
from sbs_deploy.backends.spec import Backend, require_module
from sbs_deploy.backends.tensorrt.build import chips_of, engine_from_onnx
from sbs_deploy.backends.tensorrt.device import open_device
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.backends.tensorrt.plan_text import low_precision_convolutions
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.quantized import layer_counts, quantized_layers
from sbs_deploy.machine.hardware import Hardware, this_hardware
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


class TensorRT(Runtime):
    """TensorRT and TensorRT-RTX on a GPU."""

    suffix = "engine"

    def depends_on(self, request: Request) -> dict[str, str]:
        """Hashes of the request, and of the GPU if the engine is built for this GPU."""
        check_settings(request.settings, request.backend)
        return {
            "settings": rundir.hash_of(_asked(request)),
            "hardware": rundir.hash_of(_hardware(request.backend).as_json()),
        }

    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """Write a strongly typed engine; SbsError if an INT8 layer runs in float."""
        trt, model = require_module(request.backend), load_onnx(source)
        built = engine_from_onnx(trt, model, str(source), request)
        quantized = list(quantized_layers(model))
        found = low_precision_convolutions(built.plan, quantized) if quantized else []
        left = None if found is None else [name for name in quantized if name not in found]
        # TensorRT may have no 8-bit kernel for a transposed convolution. FP8 operands that it computes in FP16 (large
        # filters over an image) are no error either.
        transposed = {node.name for node in model.graph.node if node.op_type == "ConvTranspose"}
        wrong = [name for name in left or () if name not in transposed]
        if wrong and (request.precision == "int8" or len(wrong) == len(quantized)):
            raise SbsError(
                f"{request.backend.name} put {', '.join(wrong)} in float: the engine would not be {request.precision}; "
                f"report the model"
            )
        temporary.write_bytes(built.plan)
        return {
            **_asked(request),
            "hardware": _hardware(request.backend).as_json(),
            "shapes": built.shapes,
            "flags": ["STRONGLY_TYPED", *built.flags],
            **layer_counts(quantized, found),
            "onnx_version": importlib.metadata.version("onnx"),
        }

    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> TensorRTEngine:
        """Load the engine on this GPU."""
        return TensorRTEngine(path, backend=backend, precision=precision)

    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """Compare the manifest with TensorRT's version, the compute capability and the GPU."""
        module = require_module(backend)
        problem = engine_problem(
            manifest.details, manifest.versions, module.__name__, module.__version__, this_hardware()
        )
        if problem is not None:
            raise ForAnotherMachine(f"{path.name} cannot run: {problem}; run `{command}` here")

    def require_device(self, backend: Backend) -> None:
        """Check for a GPU, and for a binding that opens it."""
        with open_device():
            pass

    def outputs(self, model: onnx.ModelProto, inputs: Named, request: Request) -> Named:
        """All outputs of a graph, on a temporary engine."""
        trt, name = require_module(request.backend), "the graph with its layers as outputs"
        built = engine_from_onnx(trt, model, name, request)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layers.engine"
            path.write_bytes(built.plan)
            with TensorRTEngine(path, backend=request.backend, precision=request.precision, cuda_graph=False) as engine:
                return engine.run(inputs)

    def request_like(self, backend: Backend, precision: str, details: Mapping[str, Any]) -> Request:
        """A request with the sizes, settings and chips in `details`, without the first build's timing cache."""
        if not details:  # the engine's manifest is damaged, and its row in bench.json reports that
            return Request(backend=backend, precision=precision)
        profile, axes, settings = built_with(details, f"the engine for {backend.label}")
        chips = tuple(details.get("compute_capabilities") or RTX_COMPUTE_CAPABILITIES)
        return Request(
            backend=backend,
            precision=precision,
            profile=profile,
            axes=axes,
            settings=settings,
            compute_capabilities=chips,
        )


RUNTIME = TensorRT()


def _asked(request: Request) -> dict[str, Any]:
    """The request as recorded in the engine's manifest."""
    return {
        "precision": request.precision,
        "profile": asdict(request.profile),
        **({"axes": request.axes_json()} if request.axes else {}),
        "compute_capabilities": chips_of(request),
        "settings": request.settings.as_json(),
    }


def _hardware(backend: Backend) -> Hardware:
    return this_hardware() if backend.build_needs_gpu else Hardware()


def engine_problem(
    details: Mapping[str, Any], versions: Mapping[str, str], module: str, version: str, here: Hardware
) -> str | None:
    """Why an engine with this manifest cannot run here, or None; unknown values are ignored.

    Args:
        details, versions: from the engine's manifest.
        module, version: name and version of the installed TensorRT.
    """
    built_with = versions.get(module)
    if built_with is not None and built_with != version:
        before, now = version_numbers(built_with), version_numbers(version)
        # Compatible engines run with newer versions of the same major one (TensorRT's support matrix).
        newer = before[:1] == now[:1] and before <= now
        if not (details.get("settings", {}).get("version_compatible") and newer):
            return f"it was built by {module} {built_with}, here is {version}"
    chips = details.get("compute_capabilities") or []
    if chips and here.sm is not None:
        newest = RTX_COMPUTE_CAPABILITIES[-1]  # its engines run on newer chips as well (NVIDIA's support matrix)
        later = newest in chips and int(here.sm.removeprefix("SM")) > int(newest.removeprefix("SM"))
        return None if here.sm in chips or later else f"it was built for {', '.join(chips)}, here is {here.sm}"
    built_on = details.get("hardware", {})
    level = details.get("settings", {}).get("hardware_compatibility", "none")
    if not chips and level == "none" and built_on.get("gpu") and here.gpu and built_on["gpu"] != here.gpu:
        return f"it was built on {built_on['gpu']}, here is {here.gpu}"
    capability = built_on.get("compute_capability")
    if level == "same-compute-capability" and capability and here.compute_capability not in (None, capability):
        return f"it was built for compute capability {capability}, here is {here.compute_capability}"
    return None
