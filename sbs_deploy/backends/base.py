"""Protocols of engines, for all backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

from sbs_deploy.graph.arrays import Arrays, ArraySpec, Named, growing, in_parts, joined
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """Time of one kernel or fused node of an engine, from the engine's profiler."""

    name: str
    """The engine's name of the node."""
    kind: str
    """The engine's type of the node: QLinearConv, Reorder, Reformat, ..."""
    ms: float
    """Median over the runs, which other processes hardly change."""
    quickest_ms: float | None = None
    """Least time over the runs, the time without other processes; None if not known."""
    nodes: tuple[str, ...] = ()
    """Names of the executed ONNX nodes, as far as the engine tells."""
    tensors: tuple[str, ...] = ()
    """Names of written tensors and of read constants, where the engine renames nodes."""


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
    def inputs(self) -> Sequence[ArraySpec]:
        """What `run` takes."""

    @property
    def outputs(self) -> Sequence[ArraySpec]:
        """What `run` returns."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that moves a time, JSON-able: threads, spinning, CUDA graph, transfers, ..."""

    @property
    def last_enqueue_ms(self) -> float | None:
        """Milliseconds that the host took to hand over the last inference of `latency_ms`; None where it computes."""

    @property
    def last_cpu_ms(self) -> float | None:
        """CPU milliseconds of the last inference of `latency_ms`, which no other process can stretch; None where the
        engine computes elsewhere, or on several threads."""

    def run(self, inputs: Named) -> Arrays:
        """The network's outputs by name, of arrays by name.

        Raises:
            SbsError: a name is wrong or missing, or an array has another type or a shape that the engine does not take.
        """

    def latency_ms(self, inputs: Named) -> float:
        """Milliseconds of one inference, on the clock that suits the device."""

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        """Times of the engine's nodes in order of execution, over `runs` inferences.

        Profiling slows an engine and clocks are coarse, so the sum is not the latency: use the times as shares.

        Raises:
            SbsError: the runtime has no times of nodes here.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class ForAnotherMachine(SbsError):
    """The engine is whole, and not for this machine or what is installed here."""


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """Result of a build; stands for its path where a path is wanted."""

    path: Path
    skipped: bool
    """Whether the engine was current, so that nothing was built."""
    details: dict[str, Any]
    """Details of the engine's manifest."""

    def __fspath__(self) -> str:
        return str(self.path)


def cache_of(engine: Path) -> Path:
    """Directory beside an engine for code that its backend compiles."""
    return engine.with_name(f"{engine.name}.cache")


def check_built_for(path: Path, manifest: Manifest, here: Mapping[str, str], command: str) -> None:
    """Refuse an engine that was built for another machine or version; values missing in the manifest are not checked.

    Args:
        here: this machine's values by the manifest's names: {"processor": "AMD EPYC", "onnxruntime": "1.32.0"}.
        command: the command that builds the engine again.

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


def outputs_in_parts(engine: Engine, inputs: Named, batch: int) -> Arrays:
    """Outputs of an engine by name, `batch` samples at a time."""
    return joined([engine.run(part) for part in in_parts(inputs, engine.inputs, batch)], growing(engine.outputs))
