"""Compare several runs: accuracy, costs, and notes on numbers that cannot be compared.

If runs were measured with different engines, each run is shown with the engine that most runs share.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.stages import packed_bytes
from sbs_train.contract.results import TimedRow


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Setting of a measurement; only latencies of equal settings can be compared."""

    backend: str
    device: str | None
    batch: int
    threads: int | None
    machine: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurement of a run's compressed network in one setting."""

    setting: Setting
    score: float | None
    """The task's score: of this engine if validated, else after fine-tuning."""
    latency_fp32_ms: float | None
    latency_ms: float
    speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run in the comparison."""

    name: str
    model: str
    data: str | None
    plan_sha256: str
    score_fp32: float | None
    score: float | None
    """The task's score: of the shown engine if validated, else after fine-tuning."""
    score_name: str
    """Name of the score, such as top1; empty if no stage was evaluated."""
    bops_fp32: float
    bops_paper: float
    bops_deployable: float
    size_fp32_bytes: float | None
    size_bytes: float | None
    backend: str | None = None
    """Backend of `latency_ms`. Of the run's settings the one that the most runs share is shown here."""
    device: str | None = None
    batch: int | None = None
    threads: int | None = None
    latency_fp32_ms: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    machine: str | None
    measured: tuple[Measured, ...]
    """Measurements in every setting."""

    @property
    def reduction_paper(self) -> float:
        return self.bops_fp32 / self.bops_paper

    @property
    def reduction_deployable(self) -> float:
        return self.bops_fp32 / self.bops_deployable


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """The runs, and notes on numbers that cannot be compared."""

    points: tuple[Point, ...]
    notes: tuple[str, ...]


def compare(ledgers: Sequence[Ledger]) -> RunComparison:
    """Put runs side by side."""
    names = _names([ledger.run for ledger in ledgers])
    measured = [tuple(_measured(ledger)) for ledger in ledgers]
    order = _most_shared(measured)
    points = []
    for ledger, name, own in zip(ledgers, names, measured, strict=True):
        shown = min(own, key=lambda one: order.index(one.setting), default=None)
        points.append(_point(ledger, name, own, shown))
    return RunComparison(points=tuple(points), notes=tuple(_notes(points)))


def _measured(ledger: Ledger) -> Iterator[Measured]:
    """The fastest engine of the plan in every setting."""
    ran = [row for row in ledger.bench.rows if isinstance(row, TimedRow)]
    rows: dict[Setting, TimedRow] = {}
    dense_ms: dict[Setting, float] = {}
    for row in sorted(ran, key=lambda row: -row.latency_p50_ms):
        setting = Setting(
            backend=row.backend, device=row.device, batch=row.batch, threads=row.threads, machine=_machine(ledger)
        )
        if row.precision in PLANNED:
            rows[setting] = row
        elif row.label == f"{DENSE} dense":
            dense_ms[setting] = row.latency_p50_ms
    for setting, row in rows.items():
        yield Measured(
            setting=setting,
            score=_score(ledger, row.artifact),
            latency_fp32_ms=dense_ms.get(setting),
            latency_ms=row.latency_p50_ms,
            speedup=row.speedup_vs_fp32,
        )


def _most_shared(measured: Sequence[Sequence[Measured]]) -> list[Setting]:
    """All settings, by number of runs; of equals the smallest batch, then the largest speed-up."""
    found = [one for own in measured for one in own]
    runs = Counter(one.setting for one in found)
    gains = {setting: sum(one.speedup or 0.0 for one in found if one.setting == setting) for setting in runs}
    return sorted(runs, key=lambda setting: (-runs[setting], setting.batch, -gains[setting]))


def _score(ledger: Ledger, artifact: str | None) -> float | None:
    """The score of an engine if validated, else after fine-tuning."""
    known = [stage for stage in ledger.stages[1:] if stage.score is not None]
    own = [stage for stage in known if artifact is not None and stage.artifact == artifact]
    trained = [stage for stage in known if stage.artifact is None]
    return next((stage.score for stage in (*own, *reversed(trained))), None)


def _point(ledger: Ledger, name: str, measured: tuple[Measured, ...], shown: Measured | None) -> Point:
    numbers: dict[str, Any] = {"machine": _machine(ledger)}
    if shown is not None:
        numbers = asdict(shown) | asdict(shown.setting)
        del numbers["setting"], numbers["score"]
    return Point(
        name=name,
        model=ledger.plan.model.name,
        data=ledger.data,
        plan_sha256=ledger.plan_sha256,
        score_fp32=ledger.stages[0].score,
        score=shown.score if shown else _score(ledger, None),
        score_name=next((stage.score_name for stage in ledger.stages if stage.score_name), ""),
        bops_fp32=ledger.plan.cost.bops_fp32,
        bops_paper=ledger.plan.cost.bops,
        bops_deployable=ledger.plan.deployable_bops(),
        size_fp32_bytes=ledger.stages[0].size_bytes,
        size_bytes=packed_bytes(ledger.plan),
        measured=measured,
        **numbers,
    )


def _machine(ledger: Ledger) -> str | None:
    machine = ledger.bench.machine.before
    return " ".join(str(part) for part in (machine.cpu, machine.cores, machine.os) if part) or None


def _names(names: Sequence[str]) -> list[str]:
    """Names of directories, numbered where they repeat."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _notes(points: Sequence[Point]) -> list[str]:
    """Notes on numbers that cannot be compared, or were not measured."""
    notes = []
    for what, values in (
        ("models, so accuracy and cost belong to different networks", [point.model for point in points]),
        ("data sets, so accuracies are of different images", [point.data for point in points]),
    ):
        if len(set(values) - {None}) > 1:
            notes.append(f"Different {what} ({_listed(points, values)}).")
    settings = {point.name: {one.setting for one in point.measured} for point in points if point.measured}
    apart = [pair for pair in combinations(settings, 2) if settings[pair[0]].isdisjoint(settings[pair[1]])]
    if apart:
        pairs = "; ".join(" and ".join(pair) for pair in apart)
        notes.append(f"Never measured on one machine with one engine and batch, so latencies do not compare: {pairs}.")
    plans = [point.plan_sha256[:8] for point in points]
    if len(set(plans)) < len(plans):
        notes.append(f"Some runs have the same plan ({_listed(points, plans)}).")
    unmeasured = [point.name for point in points if not point.measured]
    if unmeasured:
        notes.append(f"Not measured, so without a latency: {', '.join(unmeasured)} (run `sbs-deploy bench`).")
    return notes


def _listed(points: Sequence[Point], values: Sequence[str | None]) -> str:
    """Names grouped by value: `resnet20: a, b; resnet56: c`."""
    found: dict[str, list[str]] = {}
    for point, value in zip(points, values, strict=True):
        if value is not None:
            found.setdefault(value, []).append(point.name)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in found.items())
