"""The parts of CUDA that an engine needs: memory of device and host, one stream, events, captured graphs.

Engines use `Device`. Its implementation is pycuda where installed, else NVIDIA's cuda-python, whose wheels come with
torch. Neither is imported before a device is opened.

Each event decides whether the host spins or sleeps while it waits. The flags of the context cannot: they belong to the
library that made the primary context first (torch, TensorRT), and pycuda cannot set them.
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
from sbs_deploy.graph.tensor import Array
from sbs_deploy.machine import clocks
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """A point of the stream; can be recorded repeatedly."""

    handle: Any
    """The binding's event."""
    spin: bool
    """Whether the host spins (no wake-up time, one core busy) or sleeps while it waits for the event."""


class Device(abc.ABC):
    """One GPU with one stream; a context manager that frees all remaining memory."""

    name: str
    """Name of the chip."""
    stream: int
    """Handle of the stream, for TensorRT."""

    def __init__(self) -> None:
        self._buffers: dict[int, Any] = {}
        """The binding's objects for buffers, by address on the device."""
        self._pinned: dict[int, Array] = {}
        """Page-locked memory, by address on the host."""
        self._events: list[StreamEvent] = []

    @abc.abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer on the device."""

    @abc.abstractmethod
    def free(self, address: int) -> None:
        """Free a buffer on the device."""

    @abc.abstractmethod
    def pin(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked memory of the host, which the device copies directly."""

    @abc.abstractmethod
    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Free page-locked memory; its views must not be used afterwards."""

    @abc.abstractmethod
    def upload(self, address: int, array: Array) -> None:
        """Enqueue a copy of a contiguous array to the device."""

    @abc.abstractmethod
    def download(self, array: Array, address: int) -> None:
        """Enqueue a copy from the device into a contiguous array."""

    @abc.abstractmethod
    def event(self, *, spin: bool) -> StreamEvent:
        """A new event."""

    @abc.abstractmethod
    def record(self, event: StreamEvent) -> None:
        """Set the event to this point of the stream."""

    def wait(self, event: StreamEvent) -> None:
        """Wait until the stream has passed the event; the host spins or sleeps, see `StreamEvent.spin`."""
        if event.spin:
            while not self._passed(event):
                pass
        else:
            self._sleep(event)

    @abc.abstractmethod
    def elapsed_ms(self, start: StreamEvent, end: StreamEvent) -> float:
        """Milliseconds between two passed events."""

    @abc.abstractmethod
    def destroy(self, event: StreamEvent) -> None:
        """Free an event."""

    @abc.abstractmethod
    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Capture the work that `enqueue` puts on the stream, without running it.

        Raises:
            SbsError: no binding for CUDA graphs is installed, or the work cannot be captured.
        """

    @abc.abstractmethod
    def _passed(self, event: StreamEvent) -> bool:
        """Whether the stream has passed the event."""

    @abc.abstractmethod
    def _sleep(self, event: StreamEvent) -> None:
        """Sleep until the stream has passed the event."""

    def close(self) -> None:
        """Free all remaining memory."""
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
    """Open the first GPU; SbsError if no GPU, or no binding, is found."""
    runtime = _cuda_runtime()
    if importlib.util.find_spec("pycuda") is not None:
        from sbs_deploy.backends.tensorrt.device_pycuda import PycudaDevice

        return PycudaDevice(importlib.import_module("pycuda.driver"), runtime)
    if runtime is None:
        raise SbsError("no CUDA binding for Python; install one with `pip install pycuda` or cuda-python")
    from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice

    return CudaPythonDevice(runtime)


def _cuda_runtime() -> ModuleType | None:
    """cuda-python's runtime API; None if not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("cuda.bindings.runtime")
    return None


def no_gpu(error: Exception) -> SbsError:
    """An error with CUDA's message, which first says whether the machine has a GPU."""
    gpu = clocks.gpu_name()
    return SbsError(f"no NVIDIA GPU here (CUDA says: {error})" if gpu is None else f"{gpu} cannot be used: {error}")


class TensorMemory:
    """A tensor, page-locked on the host and on the device.

    A shape that needs more memory gets new memory; other shapes reuse the memory.
    """

    def __init__(self, device: Device, dtype: str = "float32") -> None:
        self._device = device
        self._dtype = np.dtype(dtype)
        self._pinned = np.zeros(0, np.uint8)
        self.address = 0
        """Address on the device."""
        self.host: Array = np.zeros(0, self._dtype)
        """The tensor on the host, in its shape."""

    def resize(self, shape: tuple[int, ...]) -> None:
        """Set the shape; values are lost. The device must not use the tensor meanwhile."""
        size = self._dtype.itemsize * int(np.prod(shape))
        if size > self._pinned.nbytes:
            self.close()
            self.address = self._device.allocate(size)
            self._pinned = self._device.pin(size)
        self.host = self._pinned[:size].view(self._dtype).reshape(shape)

    def upload(self) -> None:
        """Enqueue the copy to the device."""
        self._device.upload(self.address, self.host)

    def download(self) -> None:
        """Enqueue the copy to the host."""
        self._device.download(self.host, self.address)

    def close(self) -> None:
        """Free the memory on both sides."""
        if self._pinned.nbytes:
            self._device.unpin(self._pinned)
        if self.address:
            self._device.free(self.address)
        self._pinned, self.address, self.host = np.zeros(0, np.uint8), 0, np.zeros(0, self._dtype)
