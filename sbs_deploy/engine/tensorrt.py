"""TensorRT 10, TensorRT 11 and TensorRT-RTX: one backend, the module chosen by name.

The network is strongly typed: precision lives in the ONNX file alone. What differs between the modules is found
with hasattr, never by version or by an enum's number.
"""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_deploy.engine import trt_log
from sbs_deploy.engine.base import BuiltEngine
from sbs_deploy.engine.hardware import Hardware, this_hardware
from sbs_deploy.engine.plan_text import low_precision_convolutions
from sbs_deploy.engine.qdq_graph import quantized_layers
from sbs_deploy.engine.trt_config import (
    DEFAULTS,
    BatchProfile,
    BuilderSettings,
    TimingCache,
    apply_settings,
    check_settings,
)
from sbs_deploy.export.pipeline import load_onnx
from sbs_deploy.names import INPUT
from sbs_deploy.targets import TENSORRT_RTX, Target, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

RTX_COMPUTE_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""Chips an RTX engine is built for. SM75 is left out: its presence silently turns INT8 convolutions into float."""
FP8_CHIPS = ("SM89", "SM120")
NO_CACHE = TimingCache(None)


def build_tensorrt(
    source: Path,
    destination: Path,
    *,
    target: Target,
    precision: str,
    made_from: Mapping[str, str],
    profile: BatchProfile,
    settings: BuilderSettings = DEFAULTS,
    compute_capabilities: Sequence[str] = RTX_COMPUTE_CAPABILITIES,
    timing_cache: Path | None = None,
    legal: Mapping[str, Any] | None = None,
) -> BuiltEngine:
    """Build an engine from the ONNX file `source` and write it with its manifest.

    Args:
        source: a graph as the target executes it; every type is in it.
        made_from: hashes of what `source` was made from, the plan's among them.
        timing_cache: file of kernel timings that builds on this GPU share.
        legal: what was done to the plan's graph for this target, for the manifest.

    Raises:
        SbsError: the module is missing, the ONNX file is damaged or TensorRT refuses it (in its own words).
    """
    check_settings(settings, target)
    trt = require_module(target)
    rtx = target is TENSORRT_RTX
    capabilities = [name for name in compute_capabilities if precision != "fp8" or name in FP8_CHIPS] if rtx else []
    hardware = this_hardware() if target.build_needs_gpu else Hardware()
    asked = {
        "precision": precision,
        "profile": asdict(profile),
        "compute_capabilities": capabilities,
        "settings": settings.as_json(),
    }
    inputs = {
        **made_from,
        source.name: rundir.sha256_of(source),
        "settings": rundir.hash_of(asked),
        "hardware": rundir.hash_of(hardware.as_json()),
        trt.__name__: trt.__version__,
    }
    if rundir.is_current(destination, inputs):
        return BuiltEngine(path=destination, skipped=True, details=rundir.read_manifest(destination).details)
    model = load_onnx(source)
    cache = TimingCache(timing_cache)
    began = time.perf_counter()
    built = engine_from_onnx(trt, model.SerializeToString(), str(source), profile, capabilities, settings, cache)
    seconds = time.perf_counter() - began
    quantized = quantized_layers(model)
    found = low_precision_convolutions(built.plan, quantized) if quantized else []
    left = None if found is None else [name for name in quantized if name not in found]
    # FP8 on operands that it computes in FP16 (large filters over an image) is still the graph that was asked for.
    if left and (precision == "int8" or len(left) == len(quantized)):
        raise SbsError(
            f"{target.name} put {', '.join(left)} in float: the engine would not be {precision}; report the model"
        )
    details = {
        **asked,
        "backend": target.name,
        "hardware": hardware.as_json(),
        "shapes": built.shapes,
        "flags": ["STRONGLY_TYPED", *built.flags],
        "build_seconds": round(seconds, 3),
        "quantized_layers": len(quantized),
        "float_layers": left,
        "legal": dict(legal or {}),
        "onnx_version": importlib.metadata.version("onnx"),
    }
    with rundir.atomic_path(destination) as temporary:
        temporary.write_bytes(built.plan)
    rundir.write_manifest(destination, inputs, versions={trt.__name__: trt.__version__}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


@dataclass(frozen=True, kw_only=True)
class SerializedEngine:
    """What a build made."""

    plan: bytes
    shapes: dict[str, list[int]]
    """Of inputs and outputs, by name; -1 for the batch."""
    flags: list[str]
    """Builder flags that were on."""


def engine_from_onnx(
    trt: ModuleType,
    serialized_onnx: bytes,
    name: str,
    profile: BatchProfile,
    compute_capabilities: Sequence[str],
    settings: BuilderSettings = DEFAULTS,
    timing_cache: TimingCache = NO_CACHE,
) -> SerializedEngine:
    """A strongly typed engine of an ONNX model, whose file is called `name`.

    Raises:
        SbsError: TensorRT refuses the model, a setting or this machine, in its own words.
    """
    logger, mark = trt_log.recording_logger(trt), trt_log.mark(trt)
    file = Path(name).name
    remedy = f"`sbs-deploy lint {name}` names what targets refuse, and --target onnxruntime may take the graph"
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind's way to say that the library returned null: no GPU, or no driver
        raise trt_log.refused(trt, mark, "cannot build on this machine") from error
    network = builder.create_network(_strongly_typed(trt))
    if network is None:
        raise trt_log.refused(trt, mark, "cannot create a strongly typed network")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(serialized_onnx):
        words = "; ".join(_parser_words(parser.get_error(i)) for i in range(min(parser.num_errors, trt_log.QUOTED)))
        reason = words or "it gave no reason"
        raise SbsError(f"{trt.__name__} {trt.__version__} cannot import {file}: {reason}; {remedy}")
    config = builder.create_builder_config()
    _set_profile(builder, config, network, profile)
    if compute_capabilities:
        _set_compute_capabilities(trt, config, compute_capabilities)
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = apply_settings(trt, config, settings)
    cached = timing_cache.attach(trt, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SbsError(f"{trt_log.refused(trt, mark, f'cannot build {file}')}; {remedy}")
    if cached:
        timing_cache.keep(config)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in tensors}
    return SerializedEngine(plan=bytes(plan), shapes=shapes, flags=flags)


def _parser_words(error: Any) -> str:
    """What the parser refuses and at which node, without what it says of the missing GPU."""
    lines = [line for line in str(error.desc()).splitlines() if "catchCudaError" not in line]
    where = f"{error.node_operator()} {error.node_name()}".strip() if hasattr(error, "node_operator") else ""
    return f"{where}: " * bool(where) + " ".join(" ".join(lines).split())[: trt_log.QUOTED_CHARACTERS]


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
