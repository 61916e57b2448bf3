"""What every engine offers, whatever runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

from sbs_deploy.graph.names import FloatArray
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """Time of one kernel or fused node of an engine, as its own profiler tells."""

    name: str
    """The engine's name of it."""
    kind: str
    """The engine's word for what it does: QLinearConv, Reorder, Reformat, ..."""
    ms: float
    """Median over the runs, which a neighbour on the machine does not move."""
    quickest_ms: float | None = None
    """The least over the runs: what it takes on a machine without neighbours; None where that is not known."""
    nodes: tuple[str, ...] = ()
    """Names of the ONNX nodes it executes, as far as the engine tells."""
    tensors: tuple[str, ...] = ()
    """Names of what it writes and of constants it reads, where these outlive the names of nodes."""


class Engine(Protocol):
    """A loaded engine: a context manager that frees what it holds on the device."""

    @property
    def name(self) -> str:
        """Name of the file it was loaded from."""

    @property
    def device(self) -> str:
        """What executes it, for people."""

    @property
    def precision(self) -> str:
        """int8, fp8, fp16 or fp32."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that moves a time, JSON-able: threads, spinning, CUDA graph, transfers, ..."""

    @property
    def last_enqueue_ms(self) -> float | None:
        """Milliseconds that the host took to hand over the last inference of `latency_ms`; None where it computes."""

    def run(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, classes) of images (N, C, H, W)."""

    def latency_ms(self, inputs: FloatArray) -> float:
        """Milliseconds of one inference of images (N, C, H, W), on the clock that suits the device."""

    def node_times(self, inputs: FloatArray, runs: int) -> list[NodeTime]:
        """Times of the engine's nodes in order of execution, over `runs` inferences of `inputs` (N, C, H, W).

        Profiling disturbs, and clocks are coarse: their sum is not the latency, so they are shares, not latencies.

        Raises:
            SbsError: its runtime does not tell.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class ForAnotherMachine(SbsError):
    """The engine is whole, and not for this machine or what is installed here."""


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """Outcome of a build."""

    path: Path
    skipped: bool
    """Whether a current engine was found and left alone."""
    details: dict[str, Any]
    """Details of the engine's manifest."""


def cache_of(engine: Path) -> Path:
    """Directory beside an engine that keeps what its backend compiled of it."""
    return engine.with_name(f"{engine.name}.cache")


def check_built_for(path: Path, manifest: Manifest, here: Mapping[str, str], command: str) -> None:
    """Refuse an engine that was built for something else than what is here; what a manifest leaves out is not checked.

    Args:
        here: by the manifest's own names, such as {"processor": "AMD EPYC", "onnxruntime": "1.32.0"}.
        command: what builds it again.

    Raises:
        SbsError: names the first difference and the command.
    """
    built_for = {**manifest.details, **manifest.versions}
    for name, value in here.items():
        if built_for.get(name, value) != value:
            what = name.replace("_", " ")
            raise ForAnotherMachine(
                f"{path.name} was built for {what} {built_for[name]}, here is {value}; run `{command}` here"
            )
