"""Requests of builds, for all backends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sbs_deploy.backends.compatibility import RTX_CAPABILITIES
from sbs_deploy.backends.spec import Backend, BackendName, Choice, choose_backend
from sbs_train.contract.errors import SbsError

OPTIMIZATION_LEVELS = range(6)
RTX_COMPUTE_CAPABILITIES = tuple(f"SM{capability.replace('.', '')}" for capability in RTX_CAPABILITIES)
"""Compute capabilities that an engine of TensorRT-RTX is built for, such as SM89."""


@dataclass(frozen=True, kw_only=True)
class BuilderSettings:
    """Settings of TensorRT's builder; its own defaults unless given."""

    optimization_level: int | None = None
    """0 (fast build) to 5 (fast engine)."""
    workspace_mib: int | None = None
    """Most scratch memory that a kernel may use."""
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    """Let the engine run on other GPUs too: of Ampere and newer, or of the same compute capability."""
    version_compatible: bool = False
    """Let newer versions of TensorRT, of the same major one, load the engine."""
    refit: bool = False
    """Let the weights of the engine be replaced without a build."""

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and level not in OPTIMIZATION_LEVELS:
            raise SbsError(f"--optimization-level {level} must be between 0 and {OPTIMIZATION_LEVELS[-1]}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise SbsError(f"--workspace-mib {self.workspace_mib} must be at least 1")

    def as_json(self) -> dict[str, Any]:
        """Settings that differ from the defaults."""
        default = asdict(BuilderSettings())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class BatchProfile:
    """Batch sizes that an engine accepts; the engine is tuned for `opt`."""

    opt: int = 1
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.opt <= self.max:
            raise SbsError(f"batch sizes must satisfy 1 <= --batch-opt ({self.opt}) <= --batch-max ({self.max})")


@dataclass(frozen=True, kw_only=True)
class AxisSizes:
    """Sizes that an engine accepts of an axis of open size, other than the batch; the engine is tuned for `opt`."""

    min: int
    opt: int
    """The size of the golden samples."""
    max: int


DEFAULTS = BuilderSettings()
DEFAULT_BATCHES = BatchProfile()


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to build an engine of a graph. Only TensorRT uses the last four fields."""

    backend: Backend
    precision: str
    axes: Mapping[str, AxisSizes] = field(default_factory=dict)
    """Sizes of the axes of open size, by name, the batch left out."""
    profile: BatchProfile = DEFAULT_BATCHES
    settings: BuilderSettings = DEFAULTS
    compute_capabilities: tuple[str, ...] = RTX_COMPUTE_CAPABILITIES
    timing_cache: Path | None = None
    """File of kernel timings, shared by builds on this GPU."""

    @property
    def usual_sizes(self) -> dict[str, int]:
        """Size of each axis that the engine is tuned for."""
        return {name: axis.opt for name, axis in self.axes.items()}

    def axes_json(self) -> dict[str, list[int]]:
        """`axes` for a manifest: least, usual and largest size."""
        return {name: [axis.min, axis.opt, axis.max] for name, axis in self.axes.items()}


@dataclass(frozen=True, kw_only=True)
class BackendFlags:
    """Flags of a build that choose a backend, or that only some backends have."""

    backend: Literal["auto"] | BackendName = "auto"
    """auto: TensorRT where it is importable and a GPU is there, else TensorRT-RTX ahead of time, else ONNX Runtime."""
    provider: Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"] | None = None
    """With --backend onnxruntime: its execution provider; cpu unless given."""
    device: str | None = None
    """With --backend openvino: CPU, GPU (Intel's; GPU.1 is the second one) or NPU; the CPU unless given."""
    batch_opt: int | None = None
    """Batch size an engine is tuned for, and its placement measured with; 1 unless given."""
    batch_max: int | None = None
    """Largest batch size a TensorRT engine accepts; 32 unless given."""
    shapes: tuple[str, ...] = ()
    """Least and largest size of every other axis of open size that a TensorRT engine accepts, such as
    height=128:512."""
    builder: BuilderSettings = DEFAULTS
    """Settings of TensorRT's builder."""

    def choice(self) -> Choice:
        """The chosen backend; SbsError if the backend lacks a requested setting."""
        choice = choose_backend(self.backend, provider=self.provider, device=self.device)
        check_settings(self.builder, choice.backend)
        return choice


def check_settings(settings: BuilderSettings, backend: Backend) -> None:
    """Refuse settings that a backend lacks, before any work.

    Raises:
        SbsError: names the first setting that the backend does not have.
    """
    unknown = next((name for name in settings.as_json() if name not in backend.settings), None)
    if unknown is not None:
        raise SbsError(
            f"--{unknown.replace('_', '-')} is a setting of TensorRT that {backend.name} does not have; leave it out, "
            "or use --backend tensorrt"
        )


def sizes_of_axes(shapes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Least and largest size by axis, of texts such as height=128:512; SbsError names a text that is not that."""
    found = {}
    for text in shapes:
        name, _, sizes = text.partition("=")
        ends = sizes.split(":")
        if not name or len(ends) != 2 or not all(end.isdecimal() for end in ends):
            raise SbsError(f"--shapes {text}: give an axis with its least and largest size, such as height=128:512")
        found[name] = (int(ends[0]), int(ends[1]))
    return found


def batch_profile(backend: Backend, opt: int | None, largest: int | None) -> BatchProfile:
    """The requested batch sizes, with defaults in place of None.

    Raises:
        SbsError: the backend takes batches of any size, or the sizes do not fit together.
    """
    if largest is not None and not backend.settings:
        raise SbsError(f"--batch-max is a setting of TensorRT; {backend.name} takes any batch size, leave it out")
    if opt is not None and not backend.settings:
        return BatchProfile(opt=opt, max=max(opt, DEFAULT_BATCHES.max))
    given = {"opt": opt, "max": largest}
    return BatchProfile(**{name: size for name, size in given.items() if size is not None})


def built_with(details: Mapping[str, Any], engine: str) -> tuple[BatchProfile, dict[str, AxisSizes], BuilderSettings]:
    """Batch sizes, sizes of other open axes, and settings of the build of `engine`, from its manifest's details.

    Raises:
        SbsError: the manifest is damaged.
    """
    try:
        ends = {str(name): [int(size) for size in sizes] for name, sizes in details.get("axes", {}).items()}
        axes = {name: AxisSizes(min=low, opt=opt, max=high) for name, (low, opt, high) in ends.items()}
        return BatchProfile(**details["profile"]), axes, BuilderSettings(**details.get("settings", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # SbsError is a ValueError
        raise SbsError(
            f"the manifest of {engine} is damaged ({error}); build it again with `sbs-deploy build`"
        ) from error
