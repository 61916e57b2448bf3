"""A GPU through NVIDIA's cuda-python."""

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_deploy.backends.tensorrt.cuda_graph import CapturedGraph, cuda_call
from sbs_deploy.backends.tensorrt.device import Device, StreamEvent, no_gpu
from sbs_deploy.graph.tensor import Array
from sbs_train.contract.errors import SbsError


class CudaPythonDevice(Device):
    """Device 0 through the runtime API (cuda.bindings.runtime), in the primary context."""

    def __init__(self, runtime: ModuleType) -> None:
        super().__init__()
        self._runtime: Any = runtime
        try:
            self._call("cudaSetDevice", 0)
            properties = self._call("cudaGetDeviceProperties", 0)
        except (SbsError, RuntimeError) as error:
            raise no_gpu(error) from error
        self.name: str = properties.name.decode().rstrip("\0")
        self._stream = self._call("cudaStreamCreate")
        self.stream: int = int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer."""
        address = int(self._call("cudaMalloc", size_bytes))
        self._buffers[address] = address
        return address

    def free(self, address: int) -> None:
        """Free a buffer."""
        self._call("cudaFree", self._buffers.pop(address))

    def pin(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory."""
        address = int(self._call("cudaHostAlloc", size_bytes, self._runtime.cudaHostAllocDefault))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        self._pinned[address] = memory
        return memory

    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Free page-locked memory."""
        self._call("cudaFreeHost", self._pinned.pop(memory.ctypes.data).ctypes.data)

    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy from host to device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Enqueue a copy from device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def event(self, *, spin: bool) -> StreamEvent:
        """A new event; cudaEventBlockingSync lets the host sleep."""
        flags = self._runtime.cudaEventDefault if spin else self._runtime.cudaEventBlockingSync
        self._events.append(StreamEvent(handle=self._call("cudaEventCreateWithFlags", flags), spin=spin))
        return self._events[-1]

    def record(self, event: StreamEvent) -> None:
        """Set the event to this point of the stream."""
        self._call("cudaEventRecord", event.handle, self._stream)

    def elapsed_ms(self, start: StreamEvent, end: StreamEvent) -> float:
        """Milliseconds from `start` to `end`."""
        return float(self._call("cudaEventElapsedTime", start.handle, end.handle))

    def destroy(self, event: StreamEvent) -> None:
        """Destroy an event."""
        self._events.remove(event)
        self._call("cudaEventDestroy", event.handle)

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """A CUDA graph of the stream."""
        return CapturedGraph(self._runtime, self.stream, enqueue)

    def close(self) -> None:
        """Free all memory, events and the stream."""
        super().close()
        self._call("cudaStreamDestroy", self._stream)

    def _passed(self, event: StreamEvent) -> bool:
        (answer,) = self._runtime.cudaEventQuery(event.handle)
        if answer == self._runtime.cudaError_t.cudaErrorNotReady:
            return False
        if int(answer) != 0:
            self._sleep(event)  # raises the error
        return True

    def _sleep(self, event: StreamEvent) -> None:
        self._call("cudaEventSynchronize", event.handle)

    def _call(self, function: str, *arguments: Any) -> Any:
        return cuda_call(self._runtime, function, *arguments)
