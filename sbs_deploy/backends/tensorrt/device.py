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
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_deploy.machine import clocks
from sbs_train.contract.errors import SbsError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A point of the stream; recorded as often as one likes."""

    handle: Any
    """The binding's own."""
    spin: bool
    """Whether waiting for it asks again and again (no wake-up time, one core busy), or sleeps."""


class Graph(Protocol):
    """Work that was captured from the stream, ready to be launched as one."""

    def launch(self) -> None:
        """Put it on the stream."""

    def close(self) -> None:
        """Free it."""


class Device(Protocol):
    """One GPU with one stream; a context manager that frees what it handed out."""

    @property
    def name(self) -> str:
        """Name of the chip."""

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer on the device."""

    def free(self, address: int) -> None:
        """Give a buffer back."""

    def pin(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked memory of the host: copies from and to it need no detour."""

    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Give page-locked memory back; no view of it may be used afterwards."""

    def upload(self, address: int, array: Array) -> None:
        """Put a copy of a contiguous array to the device on the stream."""

    def download(self, array: Array, address: int) -> None:
        """Put a copy from the device into a contiguous array on the stream."""

    def event(self, *, spin: bool) -> Event:
        """A new event."""

    def record(self, event: Event) -> None:
        """Set the event to this point of the stream."""

    def wait(self, event: Event) -> None:
        """Wait until the stream has passed the event, as the event says."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds between two events that have passed."""

    def destroy(self, event: Event) -> None:
        """Give an event back."""

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` puts on the stream, captured without being run.

        Raises:
            SbsError: there is no binding for CUDA graphs, or something in it cannot be captured.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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


class Owner(abc.ABC):
    """Base of devices: remembers what was handed out, and frees what is left of it when it closes."""

    def __init__(self) -> None:
        self._buffers: dict[int, Any] = {}
        """By address, what the binding needs to free it."""
        self._pinned: dict[int, Array] = {}
        """By address."""
        self._events: list[Event] = []

    def wait(self, event: Event) -> None:
        """Ask again and again, or sleep, as the event says."""
        if event.spin:
            while not self._passed(event):
                pass
        else:
            self._sleep(event)

    def close(self) -> None:
        """Free what is left."""
        for event in list(self._events):
            self.destroy(event)
        for memory in list(self._pinned.values()):
            self.unpin(memory)
        for address in list(self._buffers):
            self.free(address)

    @abc.abstractmethod
    def free(self, address: int) -> None:
        """Give a buffer back."""

    @abc.abstractmethod
    def unpin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Give page-locked memory back."""

    @abc.abstractmethod
    def destroy(self, event: Event) -> None:
        """Give an event back."""

    @abc.abstractmethod
    def _passed(self, event: Event) -> bool:
        """Whether the stream has passed it."""

    @abc.abstractmethod
    def _sleep(self, event: Event) -> None:
        """Until the stream has passed it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
