"""The few facts that a reader wants first, and the sentences that say them. The page and the Markdown share them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.alignment import Alignment
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.report.goal import Goal, plain_device
from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.stages import StageRow

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of the network."""

    before: StageRow
    """The float network."""
    after: StageRow
    """The last stage whose accuracy is known."""
    engine: Row | None
    """The compressed engine that stands for the run: at the smallest batch size the fastest one."""
    dense: Row | None
    """Its dense FP32 control."""
    dense_elsewhere: Row | None
    """Dense FP32 in another engine, the fastest, where that is faster than `dense`."""
    slim: Row | None
    """Its pruned control in float."""
    size_bytes: float | None
    """Of the engine's file, or of the packed weights where nothing was measured."""
    timed: LayerLedger | None
    """Of that engine."""
    alignment: Alignment | None
    """Likewise; None where nothing was pruned, or its target takes any number of channels."""
    goal: Goal | None
    """None where the search had no target."""
    reduction_paper: float
    """Of Bit-Operations against dense FP32."""
    reduction_deployable: float
    """As that engine's graph executes them; as an 8-bit engine would, where its layers were not timed."""

    @property
    def points(self) -> float | None:
        """Percentage points of accuracy gained; below 0 they were lost."""
        if self.before.top1 is None or self.after.top1 is None:
            return None
        return self.after.top1 - self.before.top1


def summarise(ledger: Ledger) -> Summary:
    """Pick the facts."""
    engine = fastest(ledger.bench_rows)
    dense = slim = elsewhere = None
    if engine is not None:
        beside = [row for row in ledger.bench_rows if row["error"] is None and _beside(row, engine)]
        dense = next((row for row in beside if row["label"] == f"{DENSE} dense"), None)
        slim = next((row for row in beside if row["label"].endswith(" slim")), None)
        elsewhere = _fastest([row for row in ledger.bench_rows if row["label"] == f"{DENSE} dense"], engine["batch"])
        if dense is None or elsewhere is None or elsewhere["latency_p50_ms"] >= dense["latency_p50_ms"]:
            elsewhere = None
    known = [stage for stage in ledger.stages if stage.top1 is not None]
    own = [stage for stage in ledger.stages if engine is not None and stage.artifact == engine["artifact"]]
    sizes = [stage.size_bytes for stage in (*own, ledger.stages[-1]) if stage.size_bytes is not None]
    validated = [stage for stage in own if stage.top1 is not None]
    trained = [stage for stage in known if stage.artifact is None or stage is ledger.stages[0]]
    timed = next((one for one in ledger.timed if engine is not None and _is_of(one, engine)), None)
    untimed = None if engine is None else ledger.alignments[engine["backend"]]
    planned = ledger.bops_fp32 / ledger.bops_deployable
    return Summary(
        before=ledger.stages[0],
        after=(validated or trained or list(ledger.stages))[-1],
        engine=engine,
        dense=dense,
        dense_elsewhere=elsewhere,
        slim=slim,
        size_bytes=sizes[0] if sizes else None,
        timed=timed,
        alignment=untimed if timed is None else timed.alignment,
        goal=ledger.goal,
        reduction_paper=ledger.bops_fp32 / ledger.bops_paper,
        reduction_deployable=timed.realised_deployable.predicted if timed is not None else planned,
    )


def fastest(rows: tuple[Row, ...]) -> Row | None:
    """Of the engines of the plan at the smallest batch size the one with the least latency; None if none ran."""
    ran = [row for row in rows if row["precision"] in PLANNED and row["error"] is None]
    return _fastest(ran, min((row["batch"] for row in ran), default=0))


def sentences(summary: Summary) -> list[str]:
    """The summary in words, from the data alone."""
    return [sentence for part in (_accuracy, _speed, _goal, _cost, _lever, _alignment) for sentence in part(summary)]


def _accuracy(summary: Summary) -> list[str]:
    if summary.points is None or summary.before.top1 is None:
        return []
    points = f"{abs(summary.points):.2f} percentage points"
    change = (
        "as many as" if abs(summary.points) < 0.005 else f"{points} {'more' if summary.points > 0 else 'fewer'} than"
    )
    return [
        f"The compressed network answers {units.percent(summary.after.top1)} of the test images correctly, {change} "
        f"the float network ({units.percent(summary.before.top1)})."
    ]


def _speed(summary: Summary) -> list[str]:
    row, dense = summary.engine, summary.dense
    if row is None:
        return ["Nothing has been measured yet, so nothing is known about its speed."]
    what = "an image" if row["batch"] == 1 else f"a batch of {row['batch']}"
    took = (
        f"On {plain_device(row['device'])} ({row['backend']}) {what} takes {units.milliseconds(row['latency_p50_ms'])}"
    )
    ratio = row["speedup_vs_fp32"]
    if ratio is None or dense is None:
        return [f"{took}; no dense FP32 control ran beside it."]
    interval = row.get("speedup_interval")
    sure = f" (95 % interval {units.times(interval[0])} to {units.times(interval[1])})" if interval else ""
    said = (
        f"{took} instead of {units.milliseconds(dense['latency_p50_ms'])} in dense FP32 with the same engine: "
        f"{_as_fast(ratio)}{sure}."
    )
    other = summary.dense_elsewhere
    if other is None:
        return [said]
    against = other["latency_p50_ms"] / row["latency_p50_ms"]
    return [
        f"{said} Dense FP32 is faster in {other['backend']} ({units.milliseconds(other['latency_p50_ms'])}); against "
        f"that it is {_as_fast(against)}."
    ]


def _as_fast(ratio: float) -> str:
    return f"{units.times(ratio)} {'as fast' if ratio >= 1 else 'the speed, so it is SLOWER'}"


def _goal(summary: Summary) -> list[str]:
    return [summary.goal.sentence] if summary.goal is not None else []


def _cost(summary: Summary) -> list[str]:
    paper, deployable = units.times(summary.reduction_paper), units.times(summary.reduction_deployable)
    said = f"It needs {paper} fewer Bit-Operations on paper and {deployable} fewer as an 8-bit engine executes it"
    timed = summary.timed
    if timed is None or timed.realised_deployable.share is None:
        return [f"{said}."]
    share = timed.realised_deployable.share
    if share <= 0:
        return [f"{said}; none of that became speed."]
    return [f"{said}; of the gain that the latter promise, {units.share(share)} was realised (in logarithms)."]


def _lever(summary: Summary) -> list[str]:
    return [summary.timed.advice] if summary.timed is not None else []


def _alignment(summary: Summary) -> list[str]:
    return [summary.alignment.advice] if summary.alignment is not None else []


def _fastest(rows: Sequence[Row], batch: int) -> Row | None:
    ran = (row for row in rows if row["error"] is None and row["batch"] == batch)
    return min(ran, key=lambda row: float(row["latency_p50_ms"]), default=None)


def _beside(row: Row, engine: Row) -> bool:
    return all(row[key] == engine[key] for key in ("backend", "batch", "device"))


def _is_of(one: LayerLedger, engine: Row) -> bool:
    return (one.artifact, one.batch) == (engine["artifact"], engine["batch"])
