"""OpenVINO: an ONNX dialect compiled for a CPU, an Intel GPU or an NPU, its integer convolutions counted.

The engine is the ONNX file itself, with what OpenVINO compiled of it in a directory beside it: what fits OpenVINO's
version, the device and the settings is taken from there, the rest compiled anew. It compiles for one shape at a time:
an NPU takes no other, and a CPU fuses more.
"""

import functools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from sbs_deploy.engine.base import BuiltEngine, FloatArray, NodeTime
from sbs_deploy.engine.products import pairs_saturate, saturating_layers
from sbs_deploy.engine.qdq_graph import quantized_convolutions
from sbs_deploy.export.pipeline import load_onnx
from sbs_deploy.names import INPUT, OUTPUT
from sbs_deploy.targets import ONNXRUNTIME, OPENVINO, Target, import_problem, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    from onnx import ModelProto

INTEGERS = ("u8", "i8")
QUOTED_CHARACTERS = 400


def build_openvino(
    source: Path,
    destination: Path,
    *,
    precision: str,
    made_from: Mapping[str, str],
    target: Target = OPENVINO,
    legal: Mapping[str, Any] | None = None,
) -> BuiltEngine:
    """Compile `source` for the target's device, and keep it with what was compiled.

    Args:
        source: a graph as the target executes it; every type is in it.
        made_from: hashes of what `source` was made from, the plan's among them.
        legal: what was done to the plan's graph for this target, for the manifest.

    Raises:
        SbsError: there is no such device here, or OpenVINO refuses the model (in its own words).
    """
    version = require_module(OPENVINO).__version__
    device = target.executor
    inputs = {
        **made_from,
        source.name: rundir.sha256_of(source),
        "device": rundir.hash_of([device, device_name(device)]),
        "openvino": version,
    }
    if rundir.is_current(destination, inputs):
        return BuiltEngine(path=destination, skipped=True, details=rundir.read_manifest(destination).details)
    model = load_onnx(source)
    _require_readable(source)
    shutil.rmtree(cache_of(destination), ignore_errors=True)
    began = time.perf_counter()
    with rundir.atomic_path(destination) as temporary:
        temporary.write_bytes(source.read_bytes())
        with OpenVinoEngine(temporary, precision=precision, device=device, cache=cache_of(destination)) as engine:
            images = np.random.default_rng(0).standard_normal((1, *engine.image), np.float32)
            logits = engine.run(images)
            counts = _integer_counts(model, engine.integer_convolutions())
    details: dict[str, Any] = {
        "precision": precision,
        "backend": target.label,
        "legal": dict(legal or {}),
        **counts,
        "device": device,
        "device_name": device_name(device),
        "max_abs_diff_to_source": _difference(source, images, logits),
        "build_seconds": round(time.perf_counter() - began, 3),
    }
    if device == OPENVINO.executor and pairs_saturate():
        details["saturating_layers"] = [node.name for node in saturating_layers(model)]
    rundir.write_manifest(destination, inputs, versions={"openvino": version}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


def _require_readable(source: Path) -> None:
    """Refuse a sound graph that OpenVINO does not take: to build it again would not help.

    Raises:
        SbsError: an operator is missing in OpenVINO, such as padding that wraps around.
    """
    try:
        _core(require_module(OPENVINO)).read_model(source.read_bytes(), b"")
    except RuntimeError as error:
        raise SbsError(
            f"OpenVINO cannot run {source.name}, which is sound (circular padding is one thing it lacks); use "
            f"--target onnxruntime or tensorrt-rtx (its words: {_words(error)})"
        ) from error


def cache_of(engine: Path) -> Path:
    """Where OpenVINO keeps what it compiled of an engine."""
    return engine.with_name(f"{engine.name}.cache")


def device_name(device: str) -> str:
    """What OpenVINO calls a device in full; SbsError if it is not there."""
    openvino = require_module(OPENVINO)
    core = _core(openvino)
    try:
        return str(core.get_property(device, "FULL_DEVICE_NAME")).strip()
    except RuntimeError as error:
        here = ", ".join(core.available_devices)
        raise SbsError(
            f"--device {device}: OpenVINO {openvino.__version__.partition('-')[0]} finds no such device here, it has "
            f"{here}; install the driver, or choose one that is here (its words: {_words(error)})"
        ) from error


def _integer_counts(model: "ModelProto", integer: set[str] | None) -> dict[str, int | None]:
    """How many convolutions are quantized and run in integers; None where the device does not tell."""
    quantized = [conv.name for conv in quantized_convolutions(model)]
    counts: dict[str, int | None] = {"quantized_convolutions": len(quantized)}
    if integer is None:
        return {**counts, "int8_convolutions": None}
    # It may choose a float kernel where that is faster (small convolutions of one pixel): counted, not refused.
    return {
        **counts,
        "integer_convolutions": len(integer.intersection(quantized)),
        "fusable_convolutions": len(quantized),
    }


def _difference(source: Path, images: FloatArray, logits: FloatArray) -> float | None:
    """Largest |logit| difference to the source run node by node; None without ONNX Runtime to do that."""
    if import_problem(ONNXRUNTIME) is not None:
        return None
    from sbs_deploy.engine.onnxruntime import OnnxRuntimeEngine

    with OnnxRuntimeEngine(source, precision="fp32", optimization="none") as plain:
        return float(np.abs(logits - plain.run(images)).max())


@functools.cache
def _core(openvino: ModuleType) -> Any:
    """One for all engines, as its makers advise: it holds the loaded plugins."""
    return openvino.Core()


def _words(error: Exception) -> str:
    """The reason without source files, on one line."""
    lines = [line for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return " ".join(" ".join(lines).split())[:QUOTED_CHARACTERS]


def _fused_nodes(about: Any) -> tuple[str, ...]:
    """Names of the model's nodes (or of what they write) in a node of OpenVINO's graph, without what it appends."""
    if about is None or "originalLayersNames" not in about:
        return ()
    names = about["originalLayersNames"].value.split(",")
    return tuple(dict.fromkeys(name.partition("/WithoutBiases")[0] for name in names if name))


class OpenVinoEngine:
    """A model on OpenVINO, timed on the host's clock.

    Raises:
        SbsError: the file is damaged, or there is no such device here.
    """

    def __init__(
        self, path: Path, *, precision: str, device: str = "CPU", threads: int = 1, cache: Path | None = None
    ) -> None:
        self.name = path.name
        self.precision = precision
        self.device = f"{device_name(device)} (OpenVINO)"
        self._openvino = require_module(OPENVINO)
        self._target = device
        on_cpu = device == OPENVINO.executor
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if on_cpu or precision == "fp32" else "f16",
        }
        if on_cpu:
            # A pinned thread would wait wherever another process has its core.
            self._settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        self.settings: dict[str, Any] = {
            "device": device,
            "threads": threads if on_cpu else None,
            "streams": 1 if on_cpu else None,
            "pinning": False if on_cpu else None,
            "transfers": "none" if on_cpu else "included",
        }
        if cache is not None:
            self._settings["CACHE_DIR"] = str(cache)
        try:
            self._model: Any = _core(self._openvino).read_model(rundir.read_recorded(path, "sbs-deploy build"), b"")
        except RuntimeError as error:
            raise SbsError(f"{path} cannot be read ({_words(error)}); make it again with `sbs-deploy build`") from error
        self._shape: tuple[int, ...] = ()
        self._compiled: Any = None
        self._request: Any = None
        self._input: Any = None

    @property
    def image(self) -> tuple[int, ...]:
        """Shape of one input image: C, H, W."""
        return tuple(axis.get_length() for axis in list(self._model.input(INPUT).partial_shape)[1:])

    def run(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        self._bind(inputs)
        self._request.infer(share_outputs=True)
        logits: FloatArray = np.array(self._request.get_tensor(OUTPUT).data, np.float32)
        return logits

    def latency_ms(self, inputs: FloatArray) -> float:
        """Milliseconds of one inference whose input is in OpenVINO's own memory already."""
        self._bind(inputs)
        began = time.perf_counter()
        self._request.infer(share_outputs=True)
        return (time.perf_counter() - began) * 1e3

    def node_times(self, inputs: FloatArray, runs: int) -> list[NodeTime]:
        """Times of the nodes of a second compilation that counts, after one inference that does not count.

        OpenVINO says of each node of its own graph which nodes of the model it fused into it.
        """
        self._model.reshape({INPUT: list(inputs.shape)})
        settings = {key: value for key, value in self._settings.items() if key != "CACHE_DIR"} | {"PERF_COUNT": True}
        try:
            compiled = _core(self._openvino).compile_model(self._model, self._target, settings)
            fused = {node.get_friendly_name(): node.get_rt_info() for node in compiled.get_runtime_model().get_ops()}
            request = compiled.create_infer_request()
            seconds: dict[str, list[float]] = {}
            kinds: dict[str, str] = {}
            for run in range(1 + runs):
                request.infer({INPUT: inputs})
                for info in request.get_profiling_info() if run else ():
                    if info.status.name == "EXECUTED":
                        kinds[info.node_name] = info.node_type
                        seconds.setdefault(info.node_name, []).append(info.real_time.total_seconds())
        except RuntimeError as error:
            raise SbsError(f"{self.name} cannot be profiled on {self._target} ({_words(error)})") from error
        names = {name: _fused_nodes(fused.get(name)) for name in seconds}
        return [
            NodeTime(
                name=name,
                kind=kinds[name],
                ms=1e3 * float(np.median(taken)),
                quickest_ms=1e3 * min(taken),
                nodes=names[name],
                tensors=names[name],
            )
            for name, taken in seconds.items()
        ]

    def integer_convolutions(self) -> set[str] | None:
        """Names of the convolutions that run in integers at the shape last run; None where the device does not tell."""
        found: set[str] = set()
        try:
            nodes = self._compiled.get_runtime_model().get_ordered_ops()
        except RuntimeError:
            return None
        for node in nodes:
            about = node.get_rt_info()
            if "runtimePrecision" not in about or "originalLayersNames" not in about:
                return None
            if about["layerType"].value.lower() == "convolution" and about["runtimePrecision"].value in INTEGERS:
                found.update(about["originalLayersNames"].value.split(","))
        return found

    def _bind(self, inputs: FloatArray) -> None:
        """Copy the images into the input tensor; a new shape is compiled for first."""
        if inputs.shape != self._shape:
            try:
                self._model.reshape({INPUT: list(inputs.shape)})
                self._compiled = _core(self._openvino).compile_model(self._model, self._target, self._settings)
            except RuntimeError as error:
                raise SbsError(f"{self.name} does not run on {inputs.shape} ({_words(error)})") from error
            self._request = self._compiled.create_infer_request()
            self._input = self._request.get_tensor(INPUT)
            self._shape = inputs.shape
        self._input.data[...] = inputs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._input = self._request = self._compiled = self._model = None
