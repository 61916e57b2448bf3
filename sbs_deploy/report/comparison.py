"""Several runs side by side: what each gives for what it costs, and what of it cannot be compared.

Runs may have been measured with different engines: each is shown with the one that it shares with the most others.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.report.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How something was measured: only latencies of one setting can be compared."""

    backend: str
    device: str | None
    batch: int
    threads: int | None
    machine: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The compressed network of a run in one setting."""

    setting: Setting
    top1: float | None
    """Of this engine where that was validated, else after fine-tuning."""
    latency_fp32_ms: float | None
    latency_ms: float
    speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    name: str
    model: str
    data: str | None
    plan_sha256: str
    top1_fp32: float | None
    top1: float | None
    """Of the compressed network: of the engine shown here where that was validated, else after fine-tuning."""
    bops_fp32: float
    bops_paper: float
    bops_deployable: float
    size_fp32_bytes: float | None
    size_bytes: float | None
    backend: str | None
    """What `latency_ms` was measured with: of the run's settings the one that the most runs share."""
    device: str | None
    batch: int | None
    threads: int | None
    latency_fp32_ms: float | None
    latency_ms: float | None
    speedup: float | None
    machine: str | None
    measured: tuple[Measured, ...]
    """In every setting."""

    @property
    def reduction_paper(self) -> float:
        return self.bops_fp32 / self.bops_paper

    @property
    def reduction_deployable(self) -> float:
        return self.bops_fp32 / self.bops_deployable


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs, and in words what makes some of their numbers incomparable."""

    points: tuple[Point, ...]
    notes: tuple[str, ...]


def compare(ledgers: Sequence[Ledger]) -> Comparison:
    """Put runs side by side."""
    names = _names([ledger.run for ledger in ledgers])
    measured = [tuple(_measured(ledger)) for ledger in ledgers]
    order = _most_shared(measured)
    points = []
    for ledger, name, own in zip(ledgers, names, measured, strict=True):
        shown = min(own, key=lambda one: order.index(one.setting), default=None)
        points.append(_point(ledger, name, own, shown))
    return Comparison(points=tuple(points), notes=tuple(_notes(points)))


def _measured(ledger: Ledger) -> Iterator[Measured]:
    """The fastest engine of the plan in every setting."""
    ran = [row for row in ledger.bench_rows if row["error"] is None]
    rows: dict[Setting, dict[str, Any]] = {}
    dense_ms: dict[Setting, float] = {}
    for row in sorted(ran, key=lambda row: -row["latency_p50_ms"]):
        setting = Setting(
            **{field: row[field] for field in ("backend", "device", "batch", "threads")}, machine=_machine(ledger)
        )
        if row["precision"] in PLANNED:
            rows[setting] = row
        elif row["label"] == f"{DENSE} dense":
            dense_ms[setting] = row["latency_p50_ms"]
    for setting, row in rows.items():
        yield Measured(
            setting=setting,
            top1=_top1(ledger, row["artifact"]),
            latency_fp32_ms=dense_ms.get(setting),
            latency_ms=row["latency_p50_ms"],
            speedup=row["speedup_vs_fp32"],
        )


def _most_shared(measured: Sequence[Sequence[Measured]]) -> list[Setting]:
    """All settings, those of the most runs first; of equals the smallest batch, then what gains most."""
    found = [one for own in measured for one in own]
    runs = Counter(one.setting for one in found)
    gains = {setting: sum(one.speedup or 0.0 for one in found if one.setting == setting) for setting in runs}
    return sorted(runs, key=lambda setting: (-runs[setting], setting.batch, -gains[setting]))


def _top1(ledger: Ledger, artifact: str | None) -> float | None:
    """Of an engine where that was validated, else after fine-tuning."""
    known = [stage for stage in ledger.stages[1:] if stage.top1 is not None]
    own = [stage for stage in known if artifact is not None and stage.artifact == artifact]
    trained = [stage for stage in known if stage.artifact is None]
    return next((stage.top1 for stage in (*own, *reversed(trained))), None)


def _point(ledger: Ledger, name: str, measured: tuple[Measured, ...], shown: Measured | None) -> Point:
    return Point(
        name=name,
        model=ledger.model,
        data=ledger.data,
        plan_sha256=ledger.plan_sha256,
        top1_fp32=ledger.stages[0].top1,
        top1=shown.top1 if shown else _top1(ledger, None),
        bops_fp32=ledger.bops_fp32,
        bops_paper=ledger.bops_paper,
        bops_deployable=ledger.bops_deployable,
        size_fp32_bytes=ledger.stages[0].size_bytes,
        size_bytes=ledger.packed_bytes,
        backend=shown.setting.backend if shown else None,
        device=shown.setting.device if shown else None,
        batch=shown.setting.batch if shown else None,
        threads=shown.setting.threads if shown else None,
        latency_fp32_ms=shown.latency_fp32_ms if shown else None,
        latency_ms=shown.latency_ms if shown else None,
        speedup=shown.speedup if shown else None,
        machine=_machine(ledger),
        measured=measured,
    )


def _machine(ledger: Ledger) -> str | None:
    return " ".join(str(ledger.machine[key]) for key in ("cpu", "cores", "os") if ledger.machine.get(key)) or None


def _names(names: Sequence[str]) -> list[str]:
    """Names of directories, numbered where they repeat."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


_ALIKE: tuple[tuple[str, str, Callable[[Point], Any]], ...] = (
    ("models", "accuracy and cost belong to different networks", lambda point: point.model),
    ("data sets", "their accuracies are of different images", lambda point: point.data),
)
"""What must not differ, what it means if it does, and where it stands."""
_SETTINGS = (
    ("machines", "machine"),
    ("engines", "backend"),
    ("devices", "device"),
    ("batch sizes", "batch"),
    ("numbers of threads", "threads"),
)
"""Fields of a setting, in words."""


def _notes(points: Sequence[Point]) -> list[str]:
    notes = []
    for what, meaning, value in _ALIKE:
        known = {point.name: value(point) for point in points if value(point) is not None}
        if len(set(known.values())) > 1:
            notes.append(f"Different {what}, so {meaning} ({_listed(known)}).")
    notes += _latency_notes(points)
    plans: dict[str, list[str]] = {}
    for point in points:
        plans.setdefault(point.plan_sha256, []).append(point.name)
    notes += [f"{' and '.join(names)} have one and the same plan." for names in plans.values() if len(names) > 1]
    unmeasured = [point.name for point in points if not point.measured]
    if unmeasured:
        notes.append(f"Not measured, so without a latency: {', '.join(unmeasured)} (run `sbs-deploy bench`).")
    return notes


def _latency_notes(points: Sequence[Point]) -> list[str]:
    """Of runs that share no setting, what they differ in."""
    settings = {point.name: {one.setting for one in point.measured} for point in points if point.measured}
    apart = [pair for pair in combinations(settings, 2) if settings[pair[0]].isdisjoint(settings[pair[1]])]
    if not apart:
        return []
    meaning = "so their latencies cannot be compared"
    notes = []
    for what, field in _SETTINGS:
        values = {name: {getattr(one, field) for one in own} - {None} for name, own in settings.items()}
        differ = {
            name for a, b in apart if values[a] and values[b] and values[a].isdisjoint(values[b]) for name in (a, b)
        }
        if differ:
            known = {name: ", ".join(sorted(map(str, values[name]))) for name in values if name in differ}
            notes.append(f"Different {what}, {meaning} ({_listed(known)}).")
    pairs = "; ".join(" and ".join(pair) for pair in apart)
    return notes or [f"Measured with no engine, device, batch size and threads in common, {meaning}: {pairs}."]


def _listed(values: dict[str, Any]) -> str:
    """Names by what they have: `resnet20: a, b; resnet56: c`."""
    found: dict[Any, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in found.items())
