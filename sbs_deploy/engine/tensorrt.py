"""TensorRT 10, TensorRT 11 and TensorRT-RTX: one backend, the module chosen by name.

The network is strongly typed: precision lives in the ONNX file alone. What differs between the modules is found
with hasattr, never by version or by an enum's number.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_deploy.engine import trt_log
from sbs_deploy.engine.base import BuiltEngine
from sbs_deploy.engine.fp16 import fp16_from_float
from sbs_deploy.engine.plan_text import int8_convolutions
from sbs_deploy.engine.qdq_graph import quantized_convolutions
from sbs_deploy.export.pipeline import load_onnx
from sbs_deploy.names import INPUT
from sbs_deploy.targets import TENSORRT_RTX, Target, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

RTX_COMPUTE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""Chips an RTX engine is built for. SM75 is left out: its presence silently turns INT8 convolutions into float."""


@dataclass(frozen=True, kw_only=True)
class BatchProfile:
    """Batch sizes an engine accepts; it is tuned for `opt`."""

    opt: int = 1
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.opt <= self.max:
            raise SbsError(f"batch sizes must satisfy 1 <= --batch-opt ({self.opt}) <= --batch-max ({self.max})")


def build_tensorrt(
    source: Path,
    destination: Path,
    *,
    target: Target,
    precision: str,
    plan_sha256: str,
    profile: BatchProfile,
    compute_capabilities: Sequence[str] = RTX_COMPUTE_CAPABILITIES,
) -> BuiltEngine:
    """Build an engine from the ONNX file `source` and write it with its manifest.

    Raises:
        SbsError: the module is missing, the ONNX file is damaged or TensorRT refuses it (in its own words).
    """
    import onnx

    trt = require_module(target)
    capabilities = list(compute_capabilities) if target is TENSORRT_RTX else []
    settings = {"precision": precision, "profile": asdict(profile), "compute_capabilities": capabilities}
    made_from = {
        source.name: rundir.sha256_of(source),
        "plan.json": plan_sha256,
        "settings": rundir.hash_of(settings),
        trt.__name__: trt.__version__,
    }
    if rundir.is_current(destination, made_from):
        return BuiltEngine(path=destination, skipped=True, details=rundir.read_manifest(destination).details)
    model = load_onnx(source)
    serialized_onnx = (fp16_from_float(model) if precision == "fp16" else model).SerializeToString()
    began = time.perf_counter()
    plan, io_shapes = engine_from_onnx(trt, serialized_onnx, source.name, profile, capabilities)
    seconds = time.perf_counter() - began
    quantized = [conv.name for conv in quantized_convolutions(model)]
    int8 = int8_convolutions(plan, quantized) if quantized else []
    left = [name for name in quantized if name not in (quantized if int8 is None else int8)]
    if left:
        raise SbsError(f"{target.name} put {', '.join(left)} in float: the engine would not be INT8; report the model")
    details = {
        **settings,
        "backend": target.name,
        "shapes": io_shapes,
        "flags": ["STRONGLY_TYPED"],
        "build_seconds": round(seconds, 3),
        "quantized_convolutions": len(quantized),
        "int8_convolutions": None if int8 is None else len(int8),
        "onnx_version": onnx.__version__,
    }
    with rundir.atomic_path(destination) as temporary:
        temporary.write_bytes(plan)
    rundir.write_manifest(destination, made_from, versions={trt.__name__: trt.__version__}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


def engine_from_onnx(
    trt: ModuleType,
    serialized_onnx: bytes,
    name: str,
    profile: BatchProfile,
    compute_capabilities: Sequence[str],
) -> tuple[bytes, dict[str, list[int]]]:
    """A serialized engine, and the shapes of its inputs and outputs (-1 for the batch)."""
    logger, mark = trt_log.recording_logger(trt), trt_log.mark(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind's way to say that the library returned null: no GPU, or no driver
        raise trt_log.refused(trt, mark, "cannot build on this machine") from error
    network = builder.create_network(_strongly_typed(trt))
    if network is None:
        raise trt_log.refused(trt, mark, "cannot create a strongly typed network")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(serialized_onnx):
        words = "; ".join(str(parser.get_error(i).desc()) for i in range(min(parser.num_errors, trt_log.QUOTED)))
        raise SbsError(f"{trt.__name__} {trt.__version__} cannot import {name}: {words or 'it gave no reason'}")
    config = builder.create_builder_config()
    _set_profile(builder, config, network, profile)
    if compute_capabilities:
        _set_compute_capabilities(trt, config, compute_capabilities)
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise trt_log.refused(trt, mark, f"cannot build {name}")
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return bytes(plan), {tensor.name: [int(size) for size in tensor.shape] for tensor in tensors}


def _strongly_typed(trt: ModuleType) -> int:
    """Creation flags; where the flag is gone, strong typing is the only mode left."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_profile(builder: Any, config: Any, network: Any, batch: BatchProfile) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(int(size) for size in tensor.shape)[1:]
        if tensor.name != INPUT or any(size < 0 for size in rest):
            raise SbsError(f"input {tensor.name} {tuple(tensor.shape)} is not {INPUT} with a dynamic batch alone")
        if tensor.shape[0] < 0:
            profile.set_shape(INPUT, (1, *rest), (batch.opt, *rest), (batch.max, *rest))
    if config.add_optimization_profile(profile) < 0:
        raise SbsError(f"the batch sizes 1, {batch.opt}, {batch.max} do not form a valid profile")


def _set_compute_capabilities(trt: ModuleType, config: Any, names: Sequence[str]) -> None:
    unknown = [name for name in names if not hasattr(trt.ComputeCapability, name)]
    if unknown:
        raise SbsError(f"{trt.__name__} {trt.__version__} does not know {unknown[0]}; install a newer one")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise SbsError(f"{trt.__name__} {trt.__version__} refuses to build for {name}")
