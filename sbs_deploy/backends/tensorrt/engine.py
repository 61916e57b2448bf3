"""A TensorRT engine on a GPU: load, run, time with device events, profile."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.backends.spec import Backend, require_module
from sbs_deploy.backends.tensorrt import log as trt_log
from sbs_deploy.backends.tensorrt import profile as trt_profile
from sbs_deploy.backends.tensorrt.context import Contexts
from sbs_deploy.backends.tensorrt.cuda_graph import CapturedGraph
from sbs_deploy.backends.tensorrt.device import Device, StreamEvent, TensorMemory, open_device
from sbs_deploy.graph.arrays import Arrays, ArraySpec, Named, checked, open_axis
from sbs_train.contract import rundir, trust
from sbs_train.contract.errors import SbsError


class TensorRTEngine:
    """An engine of TensorRT 10, TensorRT 11 or TensorRT-RTX.

    Args:
        cuda_graph: launch an inference as one CUDA graph, captured once for each shape; TensorRT-RTX captures itself.
            If that fails, `settings` has the reason and kernels are launched one by one.
        spin_wait: whether the host spins while it waits for the GPU, or sleeps.

    Raises:
        SbsError: no GPU, a damaged file, or an engine for another chip or version.
    """

    last_cpu_ms = None

    def __init__(
        self, path: Path, *, backend: Backend, precision: str, cuda_graph: bool = True, spin_wait: bool = True
    ) -> None:
        self.name = path.name
        self.precision = precision
        self.last_enqueue_ms = 0.0
        """Milliseconds that the host took to launch the last inference in `latency_ms`."""
        self._trt: Any = require_module(backend)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._events: list[StreamEvent] = []
        """Events before and after an inference."""
        self._graph: CapturedGraph | None = None
        self._spin_wait = spin_wait
        self._wants_graph = cuda_graph
        self._graph_state = "off: nothing has run yet" if cuda_graph else "off: asked for"
        with contextlib.ExitStack() as stack:
            self._device: Device = stack.enter_context(open_device())
            self.device = self._device.name
            stack.callback(self._release)
            self._load(path)
            self._events += [self._device.event(spin=spin_wait) for _ in range(2)]
            specs = (*self.inputs, *self.outputs)
            self._tensors = {spec.name: TensorMemory(self._device, spec.dtype) for spec in specs}
            self._stack = stack.pop_all()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the execution, for bench.json; `cuda_graph` is captured, rtx (by TensorRT-RTX) or "off: why"."""
        settings = {"cuda_graph": self._graph_state, "spin_wait": self._spin_wait, "transfers": "excluded"}
        return settings if self._cache_state is None else {**settings, "runtime_cache": self._cache_state}

    def run(self, inputs: Named) -> Arrays:
        """The outputs by name."""
        self._bind(checked(inputs, self.inputs, self.name))
        self._launch()
        found = {spec.name: self._tensors[spec.name] for spec in self.outputs}
        for tensor in found.values():
            tensor.download()
        self._synchronize()
        return {name: tensor.host.copy() for name, tensor in found.items()}

    def latency_ms(self, inputs: Named) -> float:
        """Milliseconds of one inference on the GPU, without transfers."""
        if _shapes(inputs) != self._shapes:
            self._bind(checked(inputs, self.inputs, self.name))
        start, end = self._events
        self._device.record(start)
        began = time.perf_counter()
        self._launch()
        self.last_enqueue_ms = (time.perf_counter() - began) * 1e3
        self._synchronize()
        return self._device.elapsed_ms(start, end)

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        """Times of the engine's layers over `runs` inferences, in a separate context without a CUDA graph."""
        self._bind(checked(inputs, self.inputs, self.name))
        context = self._make_context(cuda_graph=False)
        profiler = trt_profile.recording_profiler(self._trt)
        context.profiler = profiler
        self._connect(context, self._shapes)
        self._execute(context)
        self._synchronize()
        profiler.times_ms.clear()  # the first run at a shape includes setup
        for _ in range(runs):
            self._execute(context)
            self._synchronize()
        layers = trt_profile.layers_of_engine(self._trt, self._engine, context)
        return trt_profile.node_times(profiler.times_ms, layers, runs)

    def _load(self, path: Path) -> None:
        trt, mark = self._trt, trt_log.mark(self._trt)
        try:
            self._runtime = trt.Runtime(trt_log.recording_logger(trt))
        except TypeError as error:
            raise trt_log.refused(trt, mark, "has no runtime on this machine") from error
        if _details(path).get("settings", {}).get("version_compatible") and hasattr(
            self._runtime, "engine_host_code_allowed"
        ):
            trust.require_host_code(path)
            self._runtime.engine_host_code_allowed = True  # such a plan contains the runtime it was built with
        self._engine = self._runtime.deserialize_cuda_engine(rundir.read_recorded(path, "sbs-deploy build"))
        if self._engine is None:
            raise trt_log.refused(trt, mark, f"cannot load {path.name} on {self.device}")
        self.inputs, self.outputs = self._specs(path)
        self._contexts: Any = Contexts(trt, self._engine, path)
        self._cache_state: str | None = self._contexts.cache_state
        self._context = self._make_context(cuda_graph=self._wants_graph)

    def _specs(self, path: Path) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
        """Inputs and outputs; an engine has no names of open axes, which its manifest has."""
        named = _details(path).get("shapes", {})
        inputs, outputs = list[ArraySpec](), list[ArraySpec]()
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            sizes = [int(size) for size in self._engine.get_tensor_shape(name)]
            known = {axis: own for axis, own in enumerate(named.get(name, ())) if isinstance(own, str)}
            shape = tuple(
                known.get(axis, open_axis(name, axis)) if size < 0 else size for axis, size in enumerate(sizes)
            )
            dtype = str(np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))))
            taken = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (inputs if taken else outputs).append(ArraySpec(name=name, dtype=dtype, shape=shape))
        return tuple(inputs), tuple(outputs)

    def _make_context(self, *, cuda_graph: bool) -> Any:
        mark = trt_log.mark(self._trt)
        context = self._contexts.make(cuda_graph=cuda_graph)
        if context is None:
            raise trt_log.refused(self._trt, mark, f"cannot run {self.name} on {self.device}")
        return context

    def _bind(self, inputs: Named) -> None:
        """Copy inputs to the device; new shapes first get memory and a CUDA graph."""
        shapes = _shapes(inputs)
        new = shapes != self._shapes
        if new:
            self._drop_graph()
            self._shapes = {}  # nothing is bound if a later step fails
            self._resize(shapes)
        for name, array in inputs.items():
            np.copyto(self._tensors[name].host, array)
            self._tensors[name].upload()
        self._synchronize()
        if new:
            self._capture()
            self._shapes = shapes

    def _resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._set_shapes(self._context, shapes)
        for name, tensor in self._tensors.items():
            tensor.resize(tuple(int(size) for size in self._context.get_tensor_shape(name)))
        self._connect(self._context, shapes)

    def _set_shapes(self, context: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        mark = trt_log.mark(self._trt)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise trt_log.refused(self._trt, mark, f"does not take the shape {shape} of {name}")

    def _connect(self, context: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self._set_shapes(context, shapes)
        mark = trt_log.mark(self._trt)
        for name, tensor in self._tensors.items():
            if not context.set_tensor_address(name, tensor.address):
                raise trt_log.refused(self._trt, mark, f"does not take memory for {name}")

    def _capture(self) -> None:
        """Capture the inference at a new shape, after a first run in which TensorRT sets up."""
        self._execute(self._context)
        self._synchronize()
        if not self._wants_graph:
            return
        if self._contexts.captures_itself:
            able = self._context.is_stream_capturable(self._device.stream)
            self._graph_state = "rtx" if able else f"off: {self._trt.__name__} cannot capture this engine"
            return
        try:
            self._graph = self._device.capture(lambda: self._execute(self._context))
            self._graph_state = "captured"
        except SbsError as error:
            self._graph_state = f"off: {error}"

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self._execute(self._context)

    def _execute(self, context: Any) -> None:
        mark = trt_log.mark(self._trt)
        if not context.execute_async_v3(self._device.stream):
            raise trt_log.refused(self._trt, mark, f"failed to run {self.name}")

    def _synchronize(self) -> None:
        end = self._events[-1]
        self._device.record(end)
        self._device.wait(end)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._graph = None

    def _release(self) -> None:
        """Drop all objects that need the device: pycuda and TensorRT destroy theirs with the last reference."""
        self._drop_graph()
        self._events.clear()
        self._context = self._contexts = self._engine = self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            self._contexts.save()


def _shapes(inputs: Named) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}


def _details(path: Path) -> dict[str, Any]:
    """Details of the engine's manifest; empty for an engine without one."""
    return rundir.read_manifest(path).details if rundir.manifest_path(path).is_file() else {}
