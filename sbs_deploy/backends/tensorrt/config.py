"""Apply settings to a TensorRT build.

Settings that a module lacks are found with hasattr, never by version. A requested setting that is missing is an error;
settings without a request keep TensorRT's default.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_deploy.backends.request import BuilderSettings
from sbs_deploy.backends.spec import TENSORRT_RTX
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

MIB = 2**20


def apply_settings(trt: ModuleType, config: Any, settings: BuilderSettings) -> list[str]:
    """Apply settings to a builder configuration; returns the names of the builder flags in use.

    Raises:
        SbsError: the module lacks a requested setting.
    """
    if settings.optimization_level is not None:
        _require(trt, config, "builder_optimization_level", "--optimization-level")
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib is not None:
        _require(trt, config, "set_memory_pool_limit", "--workspace-mib")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    if settings.hardware_compatibility != "none":
        name = settings.hardware_compatibility.upper().replace("-", "_")
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        _require(trt, levels, name, "--hardware-compatibility")
        config.hardware_compatibility_level = getattr(levels, name)
    flags = []
    for name, wanted, option in (
        ("VERSION_COMPATIBLE", settings.version_compatible, "--version-compatible"),
        ("REFIT", settings.refit, "--refit"),
    ):
        if wanted:
            _require(trt, trt.BuilderFlag, name, option)
            config.set_flag(getattr(trt.BuilderFlag, name))
            flags.append(name)
    return flags


class TimingCache:
    """Kernel timings from earlier builds on this GPU, in a file; later builds repeat the choices of kernels.

    Does nothing without a file, or if the module has no timing cache (TensorRT-RTX compiles on the device).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def attach(self, trt: ModuleType, config: Any) -> bool:
        """Load the file into the configuration; returns whether that worked. A damaged or foreign file is replaced."""
        if self.path is None or trt.__name__ == TENSORRT_RTX.module or not hasattr(config, "create_timing_cache"):
            return False
        known = self.path.read_bytes() if self.path.is_file() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                return False
        return True

    def keep(self, config: Any) -> None:
        """Write the timings after the build, if the cache was attached."""

        cache = config.get_timing_cache() if self.path is not None else None
        if cache is not None and self.path is not None:
            with rundir.atomic_path(self.path) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))


def _require(trt: ModuleType, owner: Any, name: str, option: str) -> None:
    if not hasattr(owner, name):
        raise SbsError(f"{option}: {trt.__name__} {trt.__version__} does not have it ({name}); leave it out")
