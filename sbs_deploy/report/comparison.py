"""Several runs side by side: what each gives for what it costs, and what of it cannot be compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.summary import summarise


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    name: str
    model: str
    data: str | None
    plan_sha256: str
    top1_fp32: float | None
    top1: float | None
    """Of the compressed network: of its engine where that was validated, else after fine-tuning."""
    bops_fp32: float
    bops_paper: float
    bops_deployable: float
    size_fp32_bytes: float | None
    size_bytes: float | None
    backend: str | None
    """What `latency_ms` was measured with."""
    device: str | None
    batch: int | None
    threads: int | None
    latency_fp32_ms: float | None
    latency_ms: float | None
    speedup: float | None
    machine: str | None

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
    points = [_point(ledger, name) for ledger, name in zip(ledgers, names, strict=True)]
    return Comparison(points=tuple(points), notes=tuple(_notes(points)))


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of what nothing else beats, from the cheapest on: no other costs at most as much and gives at least as
    much, with one of the two better.

    >>> pareto([1.0, 2.0, 3.0, 2.5], [90.0, 95.0, 94.0, 96.0])
    [0, 1, 3]
    """
    found: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not found or gains[index] > gains[found[-1]]:
            found.append(index)
    return found


def _point(ledger: Ledger, name: str) -> Point:
    summary = summarise(ledger)
    engine: dict[str, Any] = summary.engine or {}
    compressed = summary.after if summary.after is not summary.before else None
    machine = ledger.machine
    return Point(
        name=name,
        model=ledger.model,
        data=ledger.data,
        plan_sha256=ledger.plan_sha256,
        top1_fp32=summary.before.top1,
        top1=compressed.top1 if compressed else None,
        bops_fp32=ledger.bops_fp32,
        bops_paper=ledger.bops_paper,
        bops_deployable=ledger.bops_deployable,
        size_fp32_bytes=summary.before.size_bytes,
        size_bytes=ledger.packed_bytes,
        backend=engine.get("backend"),
        device=engine.get("device"),
        batch=engine.get("batch"),
        threads=engine.get("threads"),
        latency_fp32_ms=summary.dense["latency_p50_ms"] if summary.dense else None,
        latency_ms=engine.get("latency_p50_ms"),
        speedup=engine.get("speedup_vs_fp32"),
        machine=" ".join(str(machine[key]) for key in ("cpu", "cores", "os") if machine.get(key)) or None,
    )


def _names(names: Sequence[str]) -> list[str]:
    """Names of directories, numbered where they repeat."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


_ALIKE: tuple[tuple[str, str, Callable[[Point], Any]], ...] = (
    ("models", "accuracy and cost belong to different networks", lambda point: point.model),
    ("data sets", "their accuracies are of different images", lambda point: point.data),
    ("machines", "their latencies cannot be compared", lambda point: point.machine),
    ("engines", "their latencies cannot be compared", lambda point: point.backend),
    ("devices", "their latencies cannot be compared", lambda point: point.device),
    ("batch sizes", "their latencies cannot be compared", lambda point: point.batch),
    ("numbers of threads", "their latencies cannot be compared", lambda point: point.threads),
)
"""What must not differ, what it means if it does, and where it stands."""


def _notes(points: Sequence[Point]) -> list[str]:
    notes = []
    for what, meaning, value in _ALIKE:
        found: dict[Any, list[str]] = {}
        for point in points:
            if value(point) is not None:
                found.setdefault(value(point), []).append(point.name)
        if len(found) > 1:
            listed = "; ".join(f"{key}: {', '.join(names)}" for key, names in found.items())
            notes.append(f"Different {what}, so {meaning} ({listed}).")
    plans: dict[str, list[str]] = {}
    for point in points:
        plans.setdefault(point.plan_sha256, []).append(point.name)
    notes += [f"{' and '.join(names)} have one and the same plan." for names in plans.values() if len(names) > 1]
    unmeasured = [point.name for point in points if point.latency_ms is None]
    if unmeasured:
        notes.append(f"Not measured, so without a latency: {', '.join(unmeasured)} (run `sbs-deploy bench`).")
    return notes
