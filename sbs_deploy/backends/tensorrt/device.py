"""The little of CUDA that running an engine needs: memory on both sides, one stream, events, captured graphs.

`Device` is what engines see. pycuda stands behind it where it is installed, else NVIDIA's cuda-python, whose wheels
come with torch. Neither is imported before a device is opened.

Whether the host spins or sleeps while it waits is said with each event, not with the flags of the context: those belong
to whoever made the primary context first (torch, TensorRT), and pycuda cannot set them.
"""

import abc
import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_deploy.backends.tensorrt.cuda_graph import CapturedGraph
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.graph.tensor import Array
from sbs_deploy.machine import clocks
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """A point of the stream; recorded as often as one likes."""

    handle: Any
    """The binding's own."""
    spin: bool
    """Whether waiting for it asks again and again (no wake-up time, one core busy), or sleeps."""


class Device(abc.ABC):
    """One GPU with one stream; a context manager that frees what is left of what it handed out."""

    name: str
    """Name of the chip."""
    stream: int
    """Handle of the stream, as TensorRT takes it."""

    def __init__(self) -> None:
        self._buffers: dict[int, Any] = {}
        """What the binding needs to free a buffer, by its address on the device."""
        self._pinned: dict[int, Array] = {}
        """Page-locked memory, by its address on the host."""
        self._events: list[StreamEvent] = []

    @abc.abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer on the device."""

    @abc.abstractmethod
    def free(self, address: int) -> None:
        """Give a buffer back."""

    @abc.abstractmethod
    def pin(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked memory of the host: copies from and to it need no detour."""

    @abc.abstractmethod
    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Give page-locked memory back; no view of it may be used afterwards."""

    @abc.abstractmethod
    def upload(self, address: int, array: Array) -> None:
        """Put a copy of a contiguous array to the device on the stream."""

    @abc.abstractmethod
    def download(self, array: Array, address: int) -> None:
        """Put a copy from the device into a contiguous array on the stream."""

    @abc.abstractmethod
    def event(self, *, spin: bool) -> StreamEvent:
        """A new event."""

    @abc.abstractmethod
    def record(self, event: StreamEvent) -> None:
        """Set the event to this point of the stream."""

    def wait(self, event: StreamEvent) -> None:
        """Wait until the stream has passed the event; the host asks again and again, or sleeps, as the event says."""
        if event.spin:
            while not self._passed(event):
                pass
        else:
            self._sleep(event)

    @abc.abstractmethod
    def elapsed_ms(self, start: StreamEvent, end: StreamEvent) -> float:
        """Milliseconds between two events that have passed."""

    @abc.abstractmethod
    def destroy(self, event: StreamEvent) -> None:
        """Give an event back."""

    @abc.abstractmethod
    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """What `enqueue` puts on the stream, captured without being run.

        Raises:
            SbsError: there is no binding for CUDA graphs, or something in it cannot be captured.
        """

    @abc.abstractmethod
    def _passed(self, event: StreamEvent) -> bool:
        """Whether the stream has passed the event."""

    @abc.abstractmethod
    def _sleep(self, event: StreamEvent) -> None:
        """Sleep until the stream has passed the event."""

    def close(self) -> None:
        """Free what is left."""
        for event in list(self._events):
            self.destroy(event)
        for memory in list(self._pinned.values()):
            self.unpin(memory)
        for address in list(self._buffers):
            self.free(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_device() -> Device:
    """The first GPU; SbsError if there is none, or nothing to reach it with."""
    runtime = _cuda_runtime()
    if importlib.util.find_spec("pycuda") is not None:
        from sbs_deploy.backends.tensorrt.device_pycuda import PycudaDevice

        return PycudaDevice(importlib.import_module("pycuda.driver"), runtime)
    if runtime is None:
        raise SbsError("no CUDA binding for Python; install one with `pip install pycuda` or cuda-python")
    from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice

    return CudaPythonDevice(runtime)


def _cuda_runtime() -> ModuleType | None:
    """cuda-python's runtime API, or None where it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("cuda.bindings.runtime")
    return None


def no_gpu(error: Exception) -> SbsError:
    """CUDA's words, after whether a GPU is there at all."""
    gpu = clocks.gpu_name()
    return SbsError(f"no NVIDIA GPU here (CUDA says: {error})" if gpu is None else f"{gpu} cannot be used: {error}")


class TensorMemory:
    """A float32 tensor, page-locked on the host and on the device.

    A shape that needs more memory gets new memory, any other reuses it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pinned = np.zeros(0, np.uint8)
        self.address = 0
        """Address on the device."""
        self.host: FloatArray = np.zeros(0, np.float32)
        """The tensor on the host, in its shape."""

    def resize(self, shape: tuple[int, ...]) -> None:
        """Take a shape; what was in it is lost. The device must not be at work on it."""
        size = 4 * int(np.prod(shape))
        if size > self._pinned.nbytes:
            self.close()
            self.address = self._device.allocate(size)
            self._pinned = self._device.pin(size)
        self.host = self._pinned[:size].view(np.float32).reshape(shape)

    def upload(self) -> None:
        """Put the copy to the device on its stream."""
        self._device.upload(self.address, self.host)

    def download(self) -> None:
        """Put the copy to the host on the stream."""
        self._device.download(self.host, self.address)

    def close(self) -> None:
        """Give both back."""
        if self._pinned.nbytes:
            self._device.unpin(self._pinned)
        if self.address:
            self._device.free(self.address)
        self._pinned, self.address, self.host = np.zeros(0, np.uint8), 0, np.zeros(0, np.float32)
