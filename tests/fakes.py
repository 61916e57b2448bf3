"""Stand-ins for TensorRT 10, 11 and RTX, which read and write the memory of tests.fake_cuda.

They differ where the real ones do (enum numbers, removed flags, runtime configurations) and answer None as they do.
"""

import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.fake_cuda import FakeMemory

CLASSES = 10
LAYERS = (
    ("conv1 + relu1", "CaskConvolution", 0.5, ("conv1.input_quantized", "conv1", "relu1")),
    ("Reformatting CopyNode for Input Tensor 0 to conv2", "Reformat", 0.25, ()),
    ("conv2", "CaskConvolution", 1.0, ("conv2",)),
)
"""Of every fake engine: name, kind, milliseconds, ONNX nodes."""


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

        self.TensorIOMode = enum.IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
        self.IProfiler = type("IProfiler", (), {"__init__": lambda profiler: None})
        self.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
        self.detailed = True
        """Whether engines were built so."""
        self.enqueued = 0

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
        return SimpleNamespace()

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
            create_execution_context=self._create_context,
            create_engine_inspector=lambda: SimpleNamespace(get_engine_information=self._inspect),
            num_io_tensors=2,
            get_tensor_name=lambda index: ("input", "logits")[index],
            get_tensor_dtype=lambda name: np.float32,
            get_tensor_shape=lambda name: (-1, 3, 8, 8) if name == "input" else (-1, CLASSES),
            get_tensor_mode=lambda name: self.TensorIOMode.INPUT if name == "input" else self.TensorIOMode.OUTPUT,
        )

    def _create_context(self) -> Any:
        return None if self.fails("context") else FakeContext(self)

    def _inspect(self, form: Any) -> str:
        assert form is self.LayerInformationFormat.JSON
        if not self.detailed:
            return json.dumps({"Layers": [name for name, *_ in LAYERS]})
        layers = [
            {"Name": name, "LayerType": kind, "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)}
            for name, kind, _, nodes in LAYERS
        ]
        return json.dumps({"Layers": layers, "Bindings": ["input", "logits"]}).replace("\\u001e", "\x1e")


class FakeTensorRTX(FakeTensorRT):
    """A module like tensorrt_rtx: contexts come from a runtime configuration, kernels from a cache.

    Its cache counts the contexts that used it, and refuses what it did not write.
    """

    def __init__(self, memory: FakeMemory, *, capturable: bool = True) -> None:
        super().__init__("1.7", memory)
        self.__name__ = "tensorrt_rtx"
        self.capturable = capturable
        self.strategies: list[Any] = []
        self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
        self.DynamicShapesKernelSpecializationStrategy = enum.Enum("Specialization", "LAZY EAGER NONE")

    def _engine(self) -> Any:
        engine = super()._engine()
        engine.create_runtime_config = lambda: SimpleNamespace(
            create_runtime_cache=FakeRuntimeCache,
            set_runtime_cache=lambda cache: setattr(cache, "used", cache.used + 1) or True,
        )
        engine.create_execution_context = self._create_configured
        return engine

    def _create_configured(self, runtime_config: Any) -> Any:
        self.strategies.append(runtime_config.cuda_graph_strategy)
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        context = self._create_context()
        context.is_stream_capturable = lambda stream: self.capturable
        return context


class FakeRuntimeCache:
    """What TensorRT-RTX compiled."""

    def __init__(self) -> None:
        self.used = 0

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"kernels "):
            return False
        self.used = int(data[8:])
        return True

    def serialize(self) -> bytes:
        return b"kernels %d" % self.used


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
    """An execution context that really reads and writes the fake memory; while its stream is captured it only adds to
    the capture, with the shape and the addresses of that moment."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profiler: Any = None
        self.ran: tuple[int, ...] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return not self.trt.fails("shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "input" else (self.shape[0], CLASSES)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return not self.trt.fails("address")

    def execute_async_v3(self, stream: int) -> bool:
        assert stream, "the default stream is not for TensorRT"
        memory = self.trt.memory
        if memory.capturing is not None:
            assert self.ran == self.shape, "the first run at a shape cannot be captured"
            if self.trt.fails("capture"):
                return False
        elif self.trt.fails("enqueue"):
            return False
        self.trt.enqueued += 1
        self.ran = self.shape
        shape, source, sink = self.shape, self.addresses["input"], self.addresses["logits"]

        def work() -> None:
            images = np.frombuffer(memory.read(source, 4 * int(np.prod(shape))), np.float32)
            memory.write(sink, (images.reshape(shape[0], -1)[:, :CLASSES] * np.float32(2)).tobytes())

        memory.enqueue(work)
        if self.profiler is not None:
            for name, _, ms, _ in LAYERS:
                self.profiler.report_layer_time(name, ms)
        return True
