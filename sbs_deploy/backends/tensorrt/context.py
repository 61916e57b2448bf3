"""Execution contexts of a TensorRT engine, with what TensorRT-RTX adds: its own CUDA graphs and a cache of kernels.

TensorRT-RTX compiles kernels on the device, when an engine first runs. What it compiled is kept beside the engine, so
that the next process starts as fast as one that is warm.
"""

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError


def runtime_cache_path(engine: Path) -> Path:
    """File that keeps TensorRT-RTX's kernels for an engine."""
    return engine.with_name(f"{engine.name}.runtime-cache")


class Contexts:
    """Makes contexts of one engine; those of TensorRT-RTX share one cache of kernels.

    Args:
        path: the engine's file.
    """

    def __init__(self, trt: ModuleType, engine: Any, path: Path) -> None:
        self._trt: Any = trt
        self._engine = engine
        self._path = runtime_cache_path(path)
        self._kept = b""
        self._configs: list[Any] = []
        """Nothing says that TensorRT copies them, so they live as long as what was made from them."""
        self._cache: Any = None
        self.cache_state: str | None = None
        """What became of the cache's file: loaded, new, or ignored and why; None where there is no such cache."""
        if self.captures_itself:
            self._cache = self._new_config().create_runtime_cache()
            self.cache_state = self._load()

    @property
    def captures_itself(self) -> bool:
        """Whether the module (TensorRT-RTX) has CUDA graphs of its own."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def make(self, *, cuda_graph: bool) -> Any:
        """A new context; None where TensorRT refuses, which says why to its logger."""
        if not self.captures_itself:
            return self._engine.create_execution_context()
        config = self._new_config()
        strategy = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if cuda_graph else strategy.DISABLED
        # Lazily it would run other kernels at first, and change them while one measures.
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(runtime_config=config)

    def save(self) -> None:
        """Write what was compiled, if it is new; where nothing can be written, the next process compiles again."""
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
