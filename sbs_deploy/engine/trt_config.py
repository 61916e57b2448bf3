"""Settings of a TensorRT build, applied where the module has them.

What a module lacks is found with hasattr, never by its version; a setting that was asked for and does not exist is an
error, one that was not asked for is left at TensorRT's own default.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sbs_deploy.targets import TENSORRT, TENSORRT_RTX, Target
from sbs_train.contract.errors import SbsError

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
MIB = 2**20
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class BuilderSettings:
    """What `sbs-deploy build` was asked for; the defaults are TensorRT's."""

    optimization_level: int | None = None
    """0 (fast build) to 5 (fast engine)."""
    workspace_mib: int | None = None
    """Most scratch memory a kernel may use."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Whether the engine also runs on other GPUs: of Ampere and newer, or of the same compute capability."""
    version_compatible: bool = False
    """Whether later versions of TensorRT load the engine."""
    refit: bool = False
    """Whether weights can be replaced without a build."""

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and level not in OPTIMIZATION_LEVELS:
            raise SbsError(f"--optimization-level {level} must be between 0 and {OPTIMIZATION_LEVELS[-1]}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise SbsError(f"--workspace-mib {self.workspace_mib} must be at least 1")

    def as_json(self) -> dict[str, Any]:
        """Only what was asked for."""
        default = asdict(BuilderSettings())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class BatchProfile:
    """Batch sizes an engine accepts; it is tuned for `opt`."""

    opt: int = 1
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.opt <= self.max:
            raise SbsError(f"batch sizes must satisfy 1 <= --batch-opt ({self.opt}) <= --batch-max ({self.max})")


DEFAULTS = BuilderSettings()
_NOT_RTX = ("refit", "version_compatible", "hardware_compatibility")


def check_settings(settings: BuilderSettings, target: Target) -> None:
    """Refuse what a target cannot do, before any work is done.

    Raises:
        SbsError: a setting for a target that is not TensorRT; refit or compatibility flags for TensorRT-RTX, which
            ignores them (its release notes).
    """
    asked = list(settings.as_json())
    if target.name not in (TENSORRT.name, TENSORRT_RTX.name):
        unknown, why = asked, f"it is a setting of TensorRT, not of {target.name}"
    else:
        unknown = [name for name in asked if target is TENSORRT_RTX and name in _NOT_RTX]
        why = "tensorrt-rtx ignores it: its engines run on every chip they are built for, and are built in seconds"
    if unknown:
        raise SbsError(f"--{unknown[0].replace('_', '-')}: {why}; leave it out, or use --target tensorrt")


def batch_profile(target: Target, opt: int | None, largest: int | None) -> BatchProfile:
    """The batch sizes that were asked for; what was not (None) is the default.

    Raises:
        SbsError: they were asked for of a target that is not TensorRT, or are no profile.
    """
    given = {"opt": opt, "max": largest}
    asked = {name: size for name, size in given.items() if size is not None}
    if asked and target.name not in (TENSORRT.name, TENSORRT_RTX.name):
        raise SbsError(
            f"--batch-{next(iter(asked))} is a setting of TensorRT; {target.name} takes any batch size, leave it out"
        )
    return BatchProfile(**asked)


def built_with(details: Mapping[str, Any], engine: str) -> tuple[BatchProfile, BuilderSettings]:
    """Batch sizes and settings that `engine` was built with, from the details of its manifest.

    Raises:
        SbsError: the manifest is damaged.
    """
    try:
        return BatchProfile(**details["profile"]), BuilderSettings(**details.get("settings", {}))
    except (KeyError, TypeError, SbsError) as error:
        raise SbsError(
            f"the manifest of {engine} is damaged ({error}); build it again with `sbs-deploy build`"
        ) from error


def apply_settings(trt: ModuleType, config: Any, settings: BuilderSettings) -> list[str]:
    """Set everything on a builder configuration; names of the builder flags that are on.

    Raises:
        SbsError: the module does not have what was asked for.
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
    """Timings of kernels from earlier builds on this GPU, in a file; builds then repeat their choices.

    Without a file, or where the module has no timing cache (TensorRT-RTX compiles on the device), it does nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def attach(self, trt: ModuleType, config: Any) -> bool:
        """Give the configuration what is known; whether it took it. A damaged or foreign file is started anew."""
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
        """Write what the build has learned, if it was attached."""
        from sbs_train.contract import rundir

        cache = config.get_timing_cache() if self.path is not None else None
        if cache is not None and self.path is not None:
            with rundir.atomic_path(self.path) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))


def _require(trt: ModuleType, owner: Any, name: str, option: str) -> None:
    if not hasattr(owner, name):
        raise SbsError(f"{option}: {trt.__name__} {trt.__version__} does not have it ({name}); leave it out")
