"""What TensorRT-RTX and ONNX Runtime make of a graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sbs_deploy.backends.tensorrt.log import mark, recording_logger
from sbs_deploy.backends.tensorrt.plan_text import plan_convolutions

CAPABILITIES = ("SM80", "SM89")


def rtx(model: onnx.ModelProto, capabilities: tuple[str, ...] = CAPABILITIES) -> tuple[bytes | None, str]:
    """The plan, or None; and all that TensorRT-RTX said."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger, before = recording_logger(trt), mark(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        words = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return None, " ".join([*words, *(text for _, text in logger.records[before:])])
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        shape = tuple(network.get_input(i).shape)
        profile.set_shape(network.get_input(i).name, *[tuple(n if d < 0 else d for d in shape) for n in (1, 2, 4)])
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan), " ".join(text for _, text in logger.records[before:])


def rtx_types(model: onnx.ModelProto) -> set[tuple[str, str]]:
    """Types of input and weights of all its convolutions; skips where the plan cannot be read."""
    plan, words = rtx(model)
    assert plan is not None, words
    kernels = plan_convolutions(plan)
    if kernels is None:
        pytest.skip("the text of this plan is not recognised")
    return {(kernel.input_type, kernel.weight_type) for kernel in kernels}


def session(model: onnx.ModelProto, *, optimized: bool = False, save_to: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # or it saturates without VNNI
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, *, optimized: bool = False, reach: float = 1.0, seed: int = 0) -> np.ndarray:
    """The output for normal noise in every float input."""
    runner = session(model, optimized=optimized)
    (x,) = runner.get_inputs()
    dims = [d if isinstance(d, int) else 2 for d in x.shape]
    noise = reach * np.random.default_rng(seed).standard_normal(dims)
    return np.asarray(runner.run(None, {x.name: noise.astype(np.float16 if "16" in x.type else np.float32)})[0])


def operators(model: onnx.ModelProto, tmp_path: Path) -> list[str]:
    """What ONNX Runtime runs when it may optimize."""
    session(model, optimized=True, save_to=tmp_path / "optimized.onnx")
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
