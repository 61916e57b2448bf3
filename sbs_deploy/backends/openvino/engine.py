"""A model compiled by OpenVINO for a CPU, an Intel GPU or an NPU, and its compiled graph.

A model is compiled for the shapes of one batch at a time: an NPU needs a fixed shape, and a CPU then fuses more.
"""

import functools
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from typing_extensions import Self

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.backends.spec import OPENVINO, require_module
from sbs_deploy.graph.arrays import Arrays, Named, checked, input_specs, output_specs
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

INTEGERS = ("u8", "i8")
PRODUCTS = ("convolution", "deconvolution", "fullyconnected", "matmul")
"""Kinds of kernels that compute layers."""
WITHOUT_BIAS = "/WithoutBiases"
"""What OpenVINO adds to the name of a layer when it takes the layer's bias apart."""
QUOTED_CHARACTERS = 400


def device_name(device: str) -> str:
    """OpenVINO's full name of a device; SbsError if the device is missing."""
    openvino = require_module(OPENVINO)
    core = core_of(openvino)
    try:
        return str(core.get_property(device, "FULL_DEVICE_NAME")).strip()
    except RuntimeError as error:
        here = ", ".join(core.available_devices)
        raise SbsError(
            f"--device {device}: OpenVINO {openvino.__version__.partition('-')[0]} finds no such device here, it has "
            f"{here}; install the driver, or choose one that is here (its words: {words(error)})"
        ) from error


@functools.cache
def core_of(openvino: ModuleType) -> Any:
    """The process's only Core, which holds the loaded plugins; OpenVINO advises a single one."""
    return openvino.Core()


def words(error: Exception) -> str:
    """The reason of an error of OpenVINO without source files, on one line."""
    lines = [line for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return " ".join(" ".join(lines).split())[:QUOTED_CHARACTERS]


def _fused_nodes(about: Any) -> tuple[str, ...]:
    """Names of the model's nodes or tensors in a node of OpenVINO's graph, without OpenVINO's suffixes."""
    if about is None or "originalLayersNames" not in about:
        return ()
    names = about["originalLayersNames"].value.split(",")
    return tuple(dict.fromkeys(name.removesuffix(WITHOUT_BIAS) for name in names if name))


class OpenVinoEngine:
    """A model on OpenVINO, timed on the host's clock.

    Raises:
        SbsError: the file is damaged, or the device is missing.
    """

    last_enqueue_ms = None
    last_cpu_ms: float | None = None

    def __init__(
        self, path: Path, *, precision: str, device: str = "CPU", threads: int = 1, cache: Path | None = None
    ) -> None:
        self.name = path.name
        self.precision = precision
        self.device = f"{device_name(device)} (OpenVINO)"
        self._openvino = require_module(OPENVINO)
        self._backend = device
        on_cpu = device == OPENVINO.device
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if on_cpu or precision == "fp32" else "f16",
        }
        if on_cpu:
            # A pinned thread would wait while another process uses its core.
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
        content = rundir.read_recorded(path, "sbs-deploy build")
        try:
            self._model: Any = core_of(self._openvino).read_model(content, b"")
            graph = onnx.load_model_from_string(content)  # OpenVINO drops the names of open axes
        except (RuntimeError, DecodeError) as error:
            raise SbsError(f"{path} cannot be read ({words(error)}); make it again with `sbs-deploy build`") from error
        self.inputs, self.outputs = input_specs(graph), output_specs(graph)
        self._shapes: dict[str, list[int]] = {}
        self._compiled: Any = None
        self._request: Any = None

    def run(self, inputs: Named) -> Arrays:
        """The outputs by name."""
        self._bind(checked(inputs, self.inputs, self.name))
        self._request.infer(share_outputs=True)
        return {spec.name: np.array(self._request.get_tensor(spec.name).data, spec.dtype) for spec in self.outputs}

    def latency_ms(self, inputs: Named) -> float:
        """Milliseconds of one inference, without copying the inputs to OpenVINO's memory."""
        self._bind(checked(inputs, self.inputs, self.name))
        cpu, began = time.process_time(), time.perf_counter()
        self._request.infer(share_outputs=True)
        taken = time.perf_counter() - began
        self.last_cpu_ms = (time.process_time() - cpu) * 1e3 if self.settings["threads"] == 1 else None
        return taken * 1e3

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        """Times of nodes in a second, profiling compilation, after one uncounted inference.

        OpenVINO lists the model's nodes that it fused into each node of its graph.
        """
        inputs = checked(inputs, self.inputs, self.name)
        self._model.reshape({name: list(array.shape) for name, array in inputs.items()})
        settings = {key: value for key, value in self._settings.items() if key != "CACHE_DIR"} | {"PERF_COUNT": True}
        try:
            compiled = core_of(self._openvino).compile_model(self._model, self._backend, settings)
            fused = {node.get_friendly_name(): node.get_rt_info() for node in compiled.get_runtime_model().get_ops()}
            request = compiled.create_infer_request()
            seconds: dict[str, list[float]] = {}
            kinds: dict[str, str] = {}
            for run in range(1 + runs):
                request.infer(inputs)
                for info in request.get_profiling_info() if run else ():
                    if info.status.name == "EXECUTED":
                        kinds[info.node_name] = info.node_type
                        seconds.setdefault(info.node_name, []).append(info.real_time.total_seconds())
        except RuntimeError as error:
            raise SbsError(f"{self.name} cannot be profiled on {self._backend} ({words(error)})") from error
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

    def integer_layers(self) -> set[str] | None:
        """Names of ONNX nodes, or of outputs that they write, whose kernels multiply integers, at the last shapes; None
        if the device does not tell.

        OpenVINO may choose a faster float kernel for a quantized layer, such as a small convolution of one pixel.
        """
        found: set[str] = set()
        try:
            nodes = self._compiled.get_runtime_model().get_ordered_ops()
        except RuntimeError:
            return None
        for node in nodes:
            about = node.get_rt_info()
            if "runtimePrecision" not in about or "originalLayersNames" not in about:
                return None
            if about["layerType"].value.lower() in PRODUCTS and about["runtimePrecision"].value in INTEGERS:
                found.update(_fused_nodes(about))
        return found

    def _bind(self, inputs: Named) -> None:
        """Copy the inputs into the input tensors; compiles the model first for new shapes."""
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        if shapes != self._shapes or self._request is None:
            self._shapes = {}  # nothing is bound if a later step fails
            try:
                self._model.reshape(shapes)
                self._compiled = core_of(self._openvino).compile_model(self._model, self._backend, self._settings)
            except RuntimeError as error:
                raise SbsError(f"{self.name} does not run on {shapes} ({words(error)})") from error
            self._request = self._compiled.create_infer_request()
            self._shapes = shapes
        for name, array in inputs.items():
            self._request.get_tensor(name).data[...] = array

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._request = self._compiled = self._model = None
