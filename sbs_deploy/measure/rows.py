"""Rows of bench.json: all artifacts at one batch size, measured together; a row has a latency or an error."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sbs_deploy.backends.base import Engine
from sbs_deploy.engines.artifacts import DENSE, Artifact
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.measure.layer_times import layer_times
from sbs_deploy.measure.protocol import Contestant, Measurement, Protocol, Times, disagreement, measure, speedup
from sbs_deploy.measure.warn import build_warnings, busy_warnings, enqueue_warnings, speedup_warnings, time_warnings
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import Details
from sbs_train.contract.results import Row, TimedRow

LAYER_RUNS = 20
"""Number of inferences for the medians of layer times."""


@dataclass(kw_only=True)
class Opened:
    """An artifact with its opened builds, or the reason why it cannot be measured."""

    artifact: Artifact
    builds: list[Engine] = field(default_factory=list)
    error: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How its engines run, as they say."""
        return dict(self.builds[0].settings) if self.builds else {}


def open_artifact(
    artifact: Artifact, builds: int, stack: contextlib.ExitStack, progress: Callable[[str], None]
) -> Opened:
    """Open the artifact and `builds` - 1 further builds of its graph."""
    opened = Opened(artifact=artifact)
    try:
        for build in range(builds):
            if build:
                progress(f"{artifact.path.name} for {artifact.backend}: build {build + 1} of {builds}")
            opened.builds.append(artifact.open(build, stack))
    except SbsError as error:
        opened.builds.clear()
        opened.error = str(error)
    return opened


def rows_of_batch(opened: Sequence[Opened], inputs: Named, batch: int, protocol: Protocol, root: Path) -> list[Row]:
    """Measure all builds of all artifacts in turns on a batch, and compare each artifact with dense FP32."""
    measured = [_Measured(opened=one) for one in opened]
    contestants: dict[str, Contestant] = {}
    for i, one in enumerate(measured):
        one.error = one.error or _refusal(one.opened.builds, inputs)
        if one.error is None:
            contestants |= {f"{i}.{j}": one.contestant(engine, inputs) for j, engine in enumerate(one.opened.builds)}
    times = measure(contestants, protocol)
    for i, one in enumerate(measured):
        if one.error is None:
            one.builds = [times[f"{i}.{j}"] for j in range(len(one.opened.builds))]
    return [_row(one, _control_of(one, measured), batch, root) for one in measured]


def with_layers(row: Row, opened: Opened, inputs: Named, layers: Sequence[str]) -> Row:
    """The row with times of the plan's layers, or the reason why they are missing; a failed row is unchanged."""
    if not isinstance(row, TimedRow):
        return row
    try:
        times = opened.builds[0].node_times(inputs, LAYER_RUNS)
        found = layer_times(times, load_onnx(opened.artifact.source()), layers)
        return row.model_copy(update={"layers": tuple(found)})
    except SbsError as error:
        return row.model_copy(update={"layers_error": str(error)})


@dataclass(kw_only=True)
class _Measured:
    """Results of an artifact at one batch size."""

    opened: Opened
    error: str | None = None
    builds: list[Measurement] = field(default_factory=list)
    enqueued_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.error = self.opened.error

    @property
    def pooled(self) -> Measurement | None:
        """The rounds of all builds together."""
        return self.builds[0].pooled_with(self.builds[1:]) if self.builds else None

    @property
    def device(self) -> str | None:
        return self.opened.builds[0].device if self.opened.builds else None

    def contestant(self, engine: Engine, inputs: Named) -> Contestant:
        """Times one inference, and takes down how long the host was at it."""

        def run() -> Times:
            taken = engine.latency_ms(inputs)
            if engine.last_enqueue_ms is not None:
                self.enqueued_ms.append(engine.last_enqueue_ms)
            return Times(taken, engine.last_cpu_ms)

        return run


def _refusal(builds: Sequence[Engine], inputs: Named) -> str | None:
    """Why an engine does not run on these inputs; None if all do."""
    try:
        for engine in builds:
            engine.run(inputs)
    except SbsError as error:
        return str(error)
    return None


def _control_of(one: _Measured, measured: Sequence[_Measured]) -> _Measured | None:
    """The control of a row: FP32 on the same device, preferably dense and on the same backend."""

    def fitness(other: _Measured) -> tuple[bool, bool]:
        artifact = other.opened.artifact
        return artifact.label == f"{DENSE} dense", artifact.backend == one.opened.artifact.backend

    able = [
        other
        for other in measured
        if other.builds and other.device == one.device and other.opened.artifact.precision == DENSE
    ]
    return max(able, key=fitness, default=None) if one.builds else None


def _row(one: _Measured, control: _Measured | None, batch: int, root: Path) -> Row:
    """The row of one artifact, compared with `control`."""
    artifact, pooled, settings = one.opened.artifact, one.pooled, one.opened.settings
    about: dict[str, Any] = {
        "artifact": _relative(artifact.path, root),
        "sha256": rundir.sha256_of(artifact.path) if artifact.path.is_file() else None,
        "label": artifact.label,
        "backend": artifact.backend,
        "device": one.device,
        "precision": artifact.precision,
        "control": artifact.control,
        "batch": batch,
        "threads": settings.get("threads"),
        "settings": settings or None,
        "builds": len(one.opened.builds),
        "predicted_bops": artifact.predicted_bops,
        "layers_in_integers": _in_integers(artifact),
    }
    if pooled is None:
        return Row(**about, warnings=(), error=one.error)
    latency = pooled.latency()
    against = control.pooled if control else None
    ratio, *interval = speedup(against, pooled) if against else (None,)
    if apart := disagreement(against, pooled) if against else None:
        ratio, interval = None, list(apart)
    builds_p50_ms = tuple(build.latency().p50_ms for build in one.builds)
    enqueue_ms = float(np.median(one.enqueued_ms)) if one.enqueued_ms else None
    return TimedRow(
        **about,
        latency_p50_ms=latency.p50_ms,
        latency_p50_interval_ms=latency.p50_interval_ms,
        images_per_second=1e3 * batch / latency.p50_ms,
        p90=latency.p90_ms,
        p99=latency.p99_ms,
        cov=latency.cov,
        cpu_p50_ms=pooled.cpu_p50_ms,
        quickest_ms=pooled.quickest_ms,
        iterations=latency.iterations,
        enqueue_p50_ms=enqueue_ms,
        builds_p50_ms=builds_p50_ms,
        speedup_vs_fp32=ratio,
        speedup_interval=(interval[0], interval[1]) if interval else None,
        speedup_over=_relative(control.opened.artifact.path, root) if against and control else None,
        warnings=(
            *speedup_warnings(apart),
            *time_warnings(pooled, latency),
            *busy_warnings(pooled.cpu_p50_ms, latency.p50_ms),
            *enqueue_warnings(enqueue_ms, latency.p50_ms, str(settings.get("cuda_graph", "off"))),
            *build_warnings(builds_p50_ms),
        ),
    )


def _in_integers(artifact: Artifact) -> int | None:
    """How many quantized layers a built engine computes in integers; None for other files."""
    if artifact.control or not rundir.manifest_path(artifact.path).is_file():
        return None
    details = Details.model_validate(rundir.read_manifest(artifact.path).details)
    return None if details.float_layers is None else details.quantized_layers - len(details.float_layers)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
