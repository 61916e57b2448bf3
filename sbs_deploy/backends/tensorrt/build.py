"""Build engines with TensorRT 10, TensorRT 11 and TensorRT-RTX, the module chosen by name.

The network is strongly typed: types come from the ONNX file alone. Differences between the modules are found with
hasattr, never by version or by an enum's number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from sbs_deploy.backends.request import Request
from sbs_deploy.backends.spec import TENSORRT_RTX
from sbs_deploy.backends.tensorrt import log as trt_log
from sbs_deploy.backends.tensorrt.config import TimingCache, apply_settings
from sbs_deploy.graph.arrays import batch_axis, input_specs, output_specs
from sbs_train.contract.errors import SbsError

FP8_CHIPS = ("SM89", "SM120")


@dataclass(frozen=True, kw_only=True)
class SerializedEngine:
    """A serialized engine and its description."""

    plan: bytes
    shapes: dict[str, list[int | str]]
    """Shapes of inputs and outputs, by name; the name of an axis of open size."""
    flags: list[str]
    """Names of the builder flags in use."""


def chips_of(request: Request) -> list[str]:
    """Compute capabilities that the engine is built for, such as SM89; empty for the present GPU."""
    chips = request.compute_capabilities if request.backend is TENSORRT_RTX else ()
    return [name for name in chips if request.precision != "fp8" or name in FP8_CHIPS]


def engine_from_onnx(trt: ModuleType, model: onnx.ModelProto, name: str, request: Request) -> SerializedEngine:
    """Build a strongly typed engine of an ONNX model; `name` is the model's file name for messages.

    Raises:
        SbsError: TensorRT refuses the model, a setting or this machine, in its own words.
    """
    logger, mark = trt_log.recording_logger(trt), trt_log.mark(trt)
    file = Path(name).name
    remedy = f"`sbs-deploy lint {name}` names what backends refuse, and --backend onnxruntime may take the graph"
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind's error if the library returned null: no GPU, or no driver
        raise trt_log.refused(trt, mark, "cannot build on this machine") from error
    network = builder.create_network(_strongly_typed(trt))
    if network is None:
        raise trt_log.refused(trt, mark, "cannot create a strongly typed network")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        words = "; ".join(_parser_words(parser.get_error(i)) for i in range(min(parser.num_errors, trt_log.QUOTED)))
        reason = words or "it gave no reason"
        raise SbsError(f"{trt.__name__} {trt.__version__} cannot import {file}: {reason}; {remedy}")
    config = builder.create_builder_config()
    _set_profile(builder, config, model, request)
    if chips := chips_of(request):
        _set_compute_capabilities(trt, config, chips)
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = apply_settings(trt, config, request.settings)
    timing_cache = TimingCache(request.timing_cache)
    cached = timing_cache.attach(trt, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SbsError(f"{trt_log.refused(trt, mark, f'cannot build {file}')}; {remedy}")
    if cached:
        timing_cache.keep(config)
    shapes = {spec.name: list(spec.shape) for spec in (*input_specs(model), *output_specs(model))}
    return SerializedEngine(plan=bytes(plan), shapes=shapes, flags=flags)


def _parser_words(error: Any) -> str:
    """The parser's errors with their nodes, without messages on a missing GPU."""
    lines = [line for line in str(error.desc()).splitlines() if "catchCudaError" not in line]
    where = f"{error.node_operator()} {error.node_name()}".strip() if hasattr(error, "node_operator") else ""
    return f"{where}: " * bool(where) + " ".join(" ".join(lines).split())[: trt_log.QUOTED_CHARACTERS]


def _strongly_typed(trt: ModuleType) -> int:
    """Flags for a strongly typed network; 0 where the module has no such flag and always types strongly."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_profile(builder: Any, config: Any, model: onnx.ModelProto, request: Request) -> None:
    """Set the least, the usual and the largest shape of every input with open axes."""
    profile, inputs, batch = builder.create_optimization_profile(), input_specs(model), request.profile
    sizes = {name: (axis.min, axis.opt, axis.max) for name, axis in request.axes.items()}
    sizes[batch_axis(inputs) or ""] = (1, batch.opt, batch.max)
    for spec in inputs:
        open_axes = [size for size in spec.shape if isinstance(size, str)]
        unknown = [size for size in open_axes if size not in sizes]
        if unknown:
            raise SbsError(
                f"input {spec.name} has the open axis {unknown[0]}, which TensorRT needs sizes of: build with "
                f"--shapes {unknown[0]}=LEAST:LARGEST"
            )
        if open_axes:
            shapes = [[sizes[size][end] if isinstance(size, str) else size for size in spec.shape] for end in range(3)]
            profile.set_shape(spec.name, *map(tuple, shapes))
    if config.add_optimization_profile(profile) < 0:
        raise SbsError(f"the sizes (least, usual, largest) {sizes} do not form a valid profile")


def _set_compute_capabilities(trt: ModuleType, config: Any, names: Sequence[str]) -> None:
    unknown = [name for name in names if not hasattr(trt.ComputeCapability, name)]
    if unknown:
        raise SbsError(f"{trt.__name__} {trt.__version__} does not know {unknown[0]}; install a newer one")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise SbsError(f"{trt.__name__} {trt.__version__} refuses to build for {name}")
