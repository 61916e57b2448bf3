"""Execution contexts of a TensorRT engine, with what TensorRT-RTX adds: its own CUDA graphs and a cache of kernels.

TensorRT-RTX compiles kernels on the device, when an engine first runs. Compiled kernels are kept beside the engine, so
that the next process starts fast.
"""

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError


def runtime_cache_path(engine: Path) -> Path:
    """File for the kernels that TensorRT-RTX compiles for an engine."""
    return engine.with_name(f"{engine.name}.runtime-cache")


class Contexts:
    """Makes contexts of one engine; contexts of TensorRT-RTX share one cache of kernels.

    Args:
        path: the engine's file.
    """

    def __init__(self, trt: ModuleType, engine: Any, path: Path) -> None:
        self._trt: Any = trt
        self._engine = engine
        self._path = runtime_cache_path(path)
        self._kept = b""
        self._configs: list[Any] = []
        """Configurations, kept alive as long as their contexts: TensorRT may not copy them."""
        self._cache: Any = None
        self.cache_state: str | None = None
        """State of the cache's file: loaded, new, or ignored with the reason; None without a cache."""
        if self.captures_itself:
            self._cache = self._new_config().create_runtime_cache()
            self.cache_state = self._load()

    @property
    def captures_itself(self) -> bool:
        """Whether the module captures CUDA graphs itself, as TensorRT-RTX does."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def make(self, *, cuda_graph: bool) -> Any:
        """A new context; None if TensorRT refuses, with the reason in its log."""
        if not self.captures_itself:
            return self._engine.create_execution_context()
        config = self._new_config()
        strategy = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if cuda_graph else strategy.DISABLED
        # Lazy compilation would first run other kernels, and change kernels during a measurement.
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(runtime_config=config)

    def save(self) -> None:
        """Write newly compiled kernels; if that fails, the next process compiles again."""
        blob = self._cache.serialize() if self._cache is not None else None
        data = b"" if blob is None else bytes(blob)
        if data and data != self._kept:
            with contextlib.suppress(SbsError), rundir.atomic_path(self._path) as temporary:
                temporary.write_bytes(data)

    def _new_config(self) -> Any:
        self._configs.append(self._engine.create_runtime_config())
        return self._configs[-1]

    def _load(self) -> str:
        if not self._path.is_file():
            return "new"
        try:
            data = self._path.read_bytes()
        except OSError as error:
            return f"ignored: {self._path.name} cannot be read ({error.strerror})"
        if not self._cache.deserialize(data):
            return f"ignored: {self._path.name} is damaged, or of another GPU, driver or version"
        self._kept = data
        return "loaded"
