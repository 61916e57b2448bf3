"""Stand-ins for what this machine lacks: a GPU behind pycuda or cuda-python, TensorRT 10 and 11.

The fake memory is checked: an address that was not allocated, a freed buffer or a copy that is too long raises. The
fake TensorRT modules differ where the real ones do (enum numbers, removed flags) and answer None as they do.
"""

import enum
from types import SimpleNamespace
from typing import Any

import numpy as np

CLASSES = 10


class FakeMemory:
    """Device memory by address."""

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.next = 0x1000

    def allocate(self, size: int) -> int:
        address, self.next = self.next, self.next + size + 256
        self.buffers[address] = bytearray(size)
        return address

    def write(self, address: int, data: bytes) -> None:
        assert len(data) <= len(self.buffers[address]), "copy beyond the end of a buffer"
        self.buffers[address][: len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        assert size <= len(self.buffers[address]), "copy beyond the end of a buffer"
        return bytes(self.buffers[address][:size])


def fake_pycuda(memory: FakeMemory, *, devices: int = 1, step_ms: float = 1.5) -> Any:
    """A module like pycuda.driver; each event is `step_ms` after the one before."""

    class Error(Exception):
        pass

    class Allocation:
        def __init__(self, size: int) -> None:
            self.address = memory.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            del memory.buffers[self.address]

    class Stream:
        handle = 77

        def synchronize(self) -> None:
            pass

    class Event:
        count = 0

        def record(self, stream: Stream) -> None:
            Event.count += 1
            self.at = Event.count

        def time_since(self, other: "Event") -> float:
            return (self.at - other.at) * step_ms

    class Device:
        def __init__(self, index: int) -> None:
            if index >= devices:
                raise Error("cuDeviceGet failed: invalid device ordinal")

        def name(self) -> str:
            return "Fake GPU"

        def retain_primary_context(self) -> Any:
            return module.context

    def download(array: np.ndarray, address: int, stream: Stream) -> None:
        array[...] = np.frombuffer(memory.read(address, array.nbytes), array.dtype).reshape(array.shape)

    module = SimpleNamespace(
        Error=Error,
        Device=Device,
        Stream=Stream,
        Event=Event,
        init=lambda: None,
        mem_alloc=Allocation,
        memcpy_htod_async=lambda address, array, stream: memory.write(address, array.tobytes()),
        memcpy_dtoh_async=download,
        context=SimpleNamespace(depth=0),
    )
    module.context.push = lambda: setattr(module.context, "depth", module.context.depth + 1)
    module.context.pop = lambda: setattr(module.context, "depth", module.context.depth - 1)
    return module


def fake_cuda_runtime(memory: FakeMemory, *, failing: str | None = None) -> Any:
    """A module like cuda.bindings.runtime: every call answers (error, value …); `failing` names one that fails."""
    import ctypes

    clock = SimpleNamespace(now=0)
    to_device, to_host = 1, 2

    def copy(destination: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        if kind == to_device:
            memory.write(destination, ctypes.string_at(source, size))
        else:
            ctypes.memmove(destination, memory.read(source, size), size)
        return (0,)

    def record(event: Any, stream: int) -> tuple[int]:
        clock.now += 1
        event.at = clock.now
        return (0,)

    def free(address: int) -> tuple[int]:
        del memory.buffers[address]
        return (0,)

    calls = {
        "cudaSetDevice": lambda index: (0,),
        "cudaGetDeviceProperties": lambda index: (0, SimpleNamespace(name=b"Fake GPU\0\0")),
        "cudaStreamCreate": lambda: (0, 88),
        "cudaStreamSynchronize": lambda stream: (0,),
        "cudaStreamDestroy": lambda stream: (0,),
        "cudaMalloc": lambda size: (0, memory.allocate(size)),
        "cudaFree": free,
        "cudaMemcpyAsync": copy,
        "cudaEventCreate": lambda: (0, SimpleNamespace(at=0)),
        "cudaEventRecord": record,
        "cudaEventElapsedTime": lambda start, end: (0, 2.0 * (end.at - start.at)),
        "cudaEventDestroy": lambda event: (0,),
        "cudaGetErrorString": lambda error: (0, b"no CUDA-capable device is detected"),
    }
    if failing is not None:
        calls[failing] = lambda *arguments: (100, None)
    kinds = SimpleNamespace(cudaMemcpyHostToDevice=to_device, cudaMemcpyDeviceToHost=to_host)
    return SimpleNamespace(cudaMemcpyKind=kinds, **calls)


class FakeTensorRT:
    """A module like tensorrt 10 or 11; the engine it makes answers the first ten values of each image, doubled.

    Args:
        version: "10.13" or "11.4": their enums differ.
        memory: what the execution context reads and writes.
        refuse: create_network, parse, build, deserialize, context, shape, enqueue or builder: that step fails as the
            real one does, with `words` in the log.
    """

    def __init__(
        self, version: str, memory: FakeMemory, *, refuse: str | None = None, words: str = "because of a test"
    ) -> None:
        self.__name__ = "tensorrt"
        self.__version__ = version
        self.memory, self.refuse, self.words = memory, refuse, words
        self.created_with: list[int] = []
        self.profiles: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
        self.configs: list[FakeConfig] = []
        old = version.startswith("10")
        severity = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
        self.Severity = enum.IntEnum("Severity", severity)
        self.ILogger = type("ILogger", (), {"__init__": lambda logger: None})
        flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if old else {"STRONGLY_TYPED": 0}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
        self.BuilderFlag = enum.IntEnum(
            "BuilderFlag", {"FP16": 0, "INT8": 1, "REFIT": 4} if old else {"REFIT": 0, "VERSION_COMPATIBLE": 9}
        )
        self.HardwareCompatibilityLevel = enum.IntEnum(
            "HardwareCompatibilityLevel", {"NONE": 0, "AMPERE_PLUS": 1, "SAME_COMPUTE_CAPABILITY": 2}
        )
        self.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0})
        self.ProfilingVerbosity = enum.IntEnum(
            "ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2} if old else {"DETAILED": 0}
        )

    def fails(self, step: str) -> bool:
        if self.refuse == step:
            self.logger.log(self.Severity.ERROR, f"{step}: {self.words}")
        return self.refuse == step

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        if self.fails("builder"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=self._create_config,
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda name, low, opt, high: self.profiles.append((name, low, opt, high))
            ),
            build_serialized_network=lambda network, config: None if self.fails("build") else b"a fake plan",
        )

    def _create_config(self) -> Any:
        self.configs.append(FakeConfig())
        return self.configs[-1]

    def _create_network(self, flags: int) -> Any:
        self.created_with.append(flags)
        if self.fails("create_network"):
            return None
        tensors = (SimpleNamespace(name="input", shape=(-1, 3, 8, 8)), SimpleNamespace(name="logits", shape=(-1, 10)))
        return SimpleNamespace(
            num_inputs=1, num_outputs=1, get_input=lambda index: tensors[0], get_output=lambda index: tensors[1]
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        failed = self.refuse == "parse"
        return SimpleNamespace(
            parse=lambda model: not failed,
            num_errors=int(failed),
            get_error=lambda index: SimpleNamespace(desc=lambda: self.words),
        )

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(
            deserialize_cuda_engine=lambda data: None if self.fails("deserialize") else self._engine()
        )

    def _engine(self) -> Any:
        return SimpleNamespace(
            create_execution_context=lambda: None if self.fails("context") else FakeContext(self),
            get_tensor_dtype=lambda name: np.float32,
        )


class FakeConfig:
    """A builder configuration; its timing cache counts the builds it has seen and refuses what it did not write."""

    def __init__(self) -> None:
        self.profiling_verbosity = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = 0
        self.flags: list[Any] = []
        self.limits: dict[Any, int] = {}
        self.cache: Any = None

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, data: bytes) -> Any:
        if data and not data.startswith(b"cache "):
            return None
        builds = int(data[6:] or 0)
        return SimpleNamespace(serialize=lambda: b"cache %d" % (builds + 1))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class FakeContext:
    """An execution context that really reads and writes the fake memory."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return not self.trt.fails("shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], CLASSES)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream, "the default stream is not for TensorRT"
        if self.trt.fails("enqueue"):
            return False
        size = 4 * int(np.prod(self.shape))
        images = np.frombuffer(self.trt.memory.read(self.addresses["input"], size), np.float32)
        logits = images.reshape(self.shape[0], -1)[:, :CLASSES] * np.float32(2)
        self.trt.memory.write(self.addresses["logits"], logits.tobytes())
        return True
