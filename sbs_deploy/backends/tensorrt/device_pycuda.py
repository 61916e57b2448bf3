"""A GPU through pycuda."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_deploy.backends.tensorrt.cuda_graph import CapturedGraph
from sbs_deploy.backends.tensorrt.device import Device, StreamEvent, no_gpu
from sbs_deploy.graph.tensor import Array
from sbs_train.contract.errors import SbsError


class PycudaDevice(Device):
    """Device 0 in its primary context, which TensorRT and torch use too.

    pycuda has no CUDA graphs; cuda-python captures them on pycuda's stream.

    Args:
        driver: pycuda.driver.
        runtime: cuda.bindings.runtime, or None where cuda-python is not installed.
    """

    def __init__(self, driver: ModuleType, runtime: ModuleType | None = None) -> None:
        super().__init__()
        self._driver: Any = driver
        self._runtime = runtime
        try:
            driver.init()
            device = driver.Device(0)
            self.name: str = device.name()
            self._context = device.retain_primary_context()
        except driver.Error as error:
            raise no_gpu(error) from error
        self._context.push()
        try:
            self._stream = self._call(driver.Stream)
        except SbsError:
            self._context.pop()
            raise
        self.stream: int = self._stream.handle

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer."""
        buffer = self._call(self._driver.mem_alloc, size_bytes)
        self._buffers[int(buffer)] = buffer
        return int(buffer)

    def free(self, address: int) -> None:
        """Free a buffer."""
        self._call(self._buffers.pop(address).free)

    def pin(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory."""
        memory: npt.NDArray[np.uint8] = self._call(self._driver.pagelocked_empty, (size_bytes,), np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Free page-locked memory; its array's base is the allocation (pycuda's documentation)."""
        allocation: Any = self._pinned.pop(memory.ctypes.data).base
        self._call(allocation.free)

    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy from host to device."""
        self._call(self._driver.memcpy_htod_async, address, array, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Enqueue a copy from device to host."""
        self._call(self._driver.memcpy_dtoh_async, array, address, self._stream)

    def event(self, *, spin: bool) -> StreamEvent:
        """A new event; BLOCKING_SYNC lets the host sleep."""
        flags = self._driver.event_flags
        handle = self._call(self._driver.Event, flags.DEFAULT if spin else flags.BLOCKING_SYNC)
        self._events.append(StreamEvent(handle=handle, spin=spin))
        return self._events[-1]

    def record(self, event: StreamEvent) -> None:
        """Set the event to this point of the stream."""
        self._call(event.handle.record, self._stream)

    def elapsed_ms(self, start: StreamEvent, end: StreamEvent) -> float:
        """Milliseconds from `start` to `end`."""
        return float(self._call(end.handle.time_since, start.handle))

    def destroy(self, event: StreamEvent) -> None:
        """Drop an event, which pycuda destroys with its last reference."""
        self._events.remove(event)

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """A CUDA graph of the stream, by cuda-python."""
        if self._runtime is None:
            raise SbsError("pycuda has no CUDA graphs, and cuda-python is not installed (`pip install cuda-python`)")
        return CapturedGraph(self._runtime, self.stream, enqueue)

    def close(self) -> None:
        """Free all memory, events and the stream, and leave the context."""
        super().close()
        self._stream = None  # dropping the last reference destroys the stream, which needs the context
        self._context.pop()

    def _passed(self, event: StreamEvent) -> bool:
        return bool(self._call(event.handle.query))

    def _sleep(self, event: StreamEvent) -> None:
        self._call(event.handle.synchronize)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of pycuda; SbsError with CUDA's message if it fails."""
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise SbsError(f"{self.name}: {error}") from error
