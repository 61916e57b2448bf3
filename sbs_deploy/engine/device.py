"""The little of CUDA that running an engine needs: buffers, one stream, events.

`Device` is what engines see. pycuda stands behind it where it is installed, else NVIDIA's cuda-python, whose wheels
come with torch. Neither is imported before a device is opened.
"""

import importlib
import importlib.util
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_deploy.bench import clocks
from sbs_train.contract.errors import SbsError

Array = npt.NDArray[Any]


class Device(Protocol):
    """One GPU with one stream; a context manager that frees its buffers."""

    @property
    def name(self) -> str:
        """Name of the chip."""

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer, freed when the device closes."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; returns when it is there."""

    def download(self, array: Array, address: int) -> None:
        """Fill a contiguous array from the device; returns when it is full."""

    def record(self) -> Any:
        """An event at this point of the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that have happened."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_device() -> Device:
    """The first GPU; SbsError if there is none, or nothing to reach it with."""
    if importlib.util.find_spec("pycuda") is not None:
        return PycudaDevice(importlib.import_module("pycuda.driver"))
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise SbsError("no CUDA binding for Python; install one with `pip install pycuda` or cuda-python") from error
    return CudaPythonDevice(runtime)


def no_gpu(error: Exception) -> SbsError:
    """CUDA's words, after whether a GPU is there at all."""
    gpu = clocks.gpu_name()
    return SbsError(f"no NVIDIA GPU here (CUDA says: {error})" if gpu is None else f"{gpu} cannot be used: {error}")


class _Closing:
    """Leaving the block closes the device."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PycudaDevice(_Closing):
    """Device 0 through pycuda, in the primary context that TensorRT and torch use too."""

    def __init__(self, driver: ModuleType) -> None:
        self._driver: Any = driver
        try:
            driver.init()
            device = driver.Device(0)
            self._context = device.retain_primary_context()
        except driver.Error as error:
            raise no_gpu(error) from error
        self.name: str = device.name()
        self._context.push()
        self._stream = driver.Stream()
        self.stream: int = self._stream.handle
        self._buffers: list[Any] = []

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer."""
        self._buffers.append(self._driver.mem_alloc(size_bytes))
        return int(self._buffers[-1])

    def upload(self, address: int, array: Array) -> None:
        """Host to device."""
        self._driver.memcpy_htod_async(address, np.ascontiguousarray(array), self._stream)
        self.synchronize()

    def download(self, array: Array, address: int) -> None:
        """Device to host."""
        self._driver.memcpy_dtoh_async(array, address, self._stream)
        self.synchronize()

    def record(self) -> Any:
        """An event on the stream."""
        event = self._driver.Event()
        event.record(self._stream)
        return event

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds from `start` to `end`."""
        return float(end.time_since(start))

    def close(self) -> None:
        """Free the buffers and leave the context."""
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []
        self._context.pop()


class CudaPythonDevice(_Closing):
    """Device 0 through cuda-python's runtime API."""

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime: Any = runtime
        try:
            self._call("cudaSetDevice", 0)
            properties = self._call("cudaGetDeviceProperties", 0)
        except (SbsError, RuntimeError) as error:
            raise no_gpu(error) from error
        self.name: str = properties.name.decode().rstrip("\0")
        self._stream = self._call("cudaStreamCreate")
        self.stream: int = int(self._stream)
        self._buffers: list[int] = []

    def allocate(self, size_bytes: int) -> int:
        """Address of a new buffer."""
        self._buffers.append(int(self._call("cudaMalloc", size_bytes)))
        return self._buffers[-1]

    def upload(self, address: int, array: Array) -> None:
        """Host to device."""
        host = np.ascontiguousarray(array)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, self._stream)
        self.synchronize()

    def download(self, array: Array, address: int) -> None:
        """Device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)
        self.synchronize()

    def record(self) -> Any:
        """An event on the stream."""
        event = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, self._stream)
        return event

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds from `start` to `end`; both events are released."""
        elapsed = float(self._call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cudaEventDestroy", event)
        return elapsed

    def close(self) -> None:
        """Free the buffers and the stream."""
        for buffer in self._buffers:
            self._call("cudaFree", buffer)
        self._buffers = []
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """cuda-python answers (error, value …); the value, or an SbsError with CUDA's words."""
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            _, words = self._runtime.cudaGetErrorString(error)
            raise SbsError(f"{function}: {words.decode() if isinstance(words, bytes) else words}")
        return values[0] if values else None
