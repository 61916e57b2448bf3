"""The most important facts, each a label with a number, for the page and the Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sbs_deploy.backends.spec import backend_labelled
from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.measure.ledger.padding import Padding, padding_of
from sbs_deploy.measure.warn import undecided
from sbs_deploy.report.goal import Goal
from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.stages import StageRow
from sbs_train.contract.results import TimedRow

NAMED = 3
"""Most padded layers named."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A label, its number and details."""

    label: str
    value: str
    note: str = ""
    bad: bool = False
    """Whether the fact is bad news, for highlighting."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Main results of a run."""

    before: StageRow
    """The float network."""
    after: StageRow
    """The last stage with a known accuracy."""
    engine: TimedRow | None
    """The fastest compressed engine at the smallest batch size."""
    dense: TimedRow | None
    """Dense FP32 on the engine's backend and device."""
    dense_elsewhere: TimedRow | None
    """The fastest dense FP32 of another backend, if faster than `dense`."""
    slim: TimedRow | None
    """The pruned float network on the engine's backend and device."""
    size_bytes: float | None
    """Bytes of the engine's file, or of the packed weights without an engine."""
    timed: LayerLedger | None
    """Layer ledger of the engine."""
    padding: Padding | None
    """Padding; None if nothing was pruned, or the engine's backend takes any number of channels."""
    goal: Goal | None
    """The target and its outcome; None without a target."""
    reduction_paper: float
    """Bit-Operations of dense FP32 over those of the plan."""
    reduction_deployable: float
    """Bit-Operations of dense FP32 over those of the engine's graph, or without layer times of any 8-bit engine."""

    @property
    def points(self) -> float | None:
        """Change of the score, which is in percent for classes and masks."""
        if self.before.score is None or self.after.score is None:
            return None
        return self.after.score - self.before.score


def summarise(ledger: Ledger) -> Summary:
    """The main results of a run."""
    rows = [row for row in ledger.bench.rows if isinstance(row, TimedRow)]
    ran = [row for row in rows if row.precision in PLANNED]
    engine = _fastest(ran, min((row.batch for row in ran), default=0))
    dense = slim = elsewhere = None
    if engine is not None:
        setting = (engine.backend, engine.batch, engine.device)
        beside = [row for row in rows if (row.backend, row.batch, row.device) == setting]
        dense = next((row for row in beside if row.label == f"{DENSE} dense"), None)
        slim = next((row for row in beside if row.label.endswith(" slim")), None)
        elsewhere = _fastest([row for row in rows if row.label == f"{DENSE} dense"], engine.batch)
        if dense is None or elsewhere is None or elsewhere.latency_p50_ms >= dense.latency_p50_ms:
            elsewhere = None
    own = [stage for stage in ledger.stages if engine is not None and stage.artifact == engine.artifact]
    sizes = [stage.size_bytes for stage in (*own, ledger.stages[-1]) if stage.size_bytes is not None]
    validated = [stage for stage in own if stage.score is not None]
    trained = [s for s in ledger.stages if s.score is not None and (s.artifact is None or s is ledger.stages[0])]
    named = None if engine is None else (engine.artifact, engine.batch)
    timed = next((one for one in ledger.timed if (one.artifact, one.batch) == named), None)
    dense_bops = ledger.plan.cost.bops_fp32
    return Summary(
        before=ledger.stages[0],
        after=(validated or trained or list(ledger.stages))[-1],
        engine=engine,
        dense=dense,
        dense_elsewhere=elsewhere,
        slim=slim,
        size_bytes=sizes[0] if sizes else None,
        timed=timed,
        padding=None if engine is None else padding_of(ledger.plan, backend_labelled(engine.backend)),
        goal=ledger.goal,
        reduction_paper=ledger.plan.cost.reduction,
        reduction_deployable=timed.realised_deployable.predicted
        if timed is not None
        else dense_bops / ledger.plan.deployable_bops(),
    )


def facts(summary: Summary) -> list[Fact]:
    """Facts on accuracy and cost, speed, the target, and the largest lever."""
    before, after, points = summary.before, summary.after, summary.points
    against = "" if points is None else f"{units.signed_points(points)} points against the float network"
    found = [
        Fact(
            label=f"Score ({name})" if (name := after.score_name or before.score_name) else "Score",
            value=units.score(after.score),
            note=f"{against} ({units.score(before.score)})",
        ),
        *_speed(summary),
        Fact(
            label="Size",
            value=units.si(summary.size_bytes, "B"),
            note=f"weights in FP32: {units.si(before.size_bytes, 'B')}",
        ),
        Fact(
            label="Bit-Operations",
            value=units.times(summary.reduction_paper),
            note=f"fewer on paper; {units.times(summary.reduction_deployable)} fewer as executed",
        ),
    ]
    if (goal := summary.goal) is not None:
        word = "reached" if goal.reached else "MISSED"
        found.append(
            Fact(label="Target", value=word, note=goal.details, bad=not goal.reached or (goal.excess or 0) > 0)
        )
    if (timed := summary.timed) is not None:
        note = (
            f"of the gain as executed, {units.share(timed.realised_paper.share)} of the gain on paper (in logarithms)"
        )
        share = timed.realised_deployable.share
        found.append(Fact(label="Predicted gain realised", value=units.share(share), note=note))
        saved = units.milliseconds(timed.levers[0].saved_ms) if timed.trusted and timed.levers else units.DASH
        found.append(Fact(label="Would help most", value=saved, note=timed.advice, bad=not timed.trusted))
    if summary.padding is not None:
        found.append(_padding(summary.padding))
    return found


def _speed(summary: Summary) -> Iterable[Fact]:
    row, dense, other = summary.engine, summary.dense, summary.dense_elsewhere
    if row is None:
        return [Fact(label="Speed", value=units.DASH, note="not measured yet: run `sbs-deploy bench`")]
    note = f"{row.backend}, batch {row.batch}, {row.device}"
    if dense is not None:
        note = (
            f"{units.milliseconds(row.latency_p50_ms)}, dense FP32 {units.milliseconds(dense.latency_p50_ms)}; {note}"
        )
    if row.speedup_interval is not None and row.speedup_vs_fp32 is None:
        note = f"{undecided(row.speedup_interval)}; {note}"
    elif row.speedup_interval is not None:
        note += f"; 95 % interval {' to '.join(map(units.times, row.speedup_interval))}"
    found = [_faster("Speed over FP32", row.speedup_vs_fp32, note)]
    if other is not None:
        ratio = row.faster_than(other)
        note = f"{other.backend}: {units.milliseconds(other.latency_p50_ms)}"
        found.append(_faster("Speed over the fastest FP32", ratio, note))
    return found


def _faster(label: str, ratio: float | None, note: str) -> Fact:
    slower = ratio is not None and ratio < 1
    return Fact(label=label, value=units.times(ratio), note=("SLOWER; " if slower else "") + note, bad=slower)


def _padding(padding: Padding) -> Fact:
    note = f"of the multiply-accumulates; channels come in multiples of {padding.multiple}"
    if padding.layers:
        note += f"; in {', '.join(padding.layers[:NAMED])}; avoid it with `--search.align {padding.multiple}`"
    return Fact(label="Padding", value=units.share(padding.share), note=note)


def _fastest(rows: Sequence[TimedRow], batch: int) -> TimedRow | None:
    return min((row for row in rows if row.batch == batch), key=lambda row: row.latency_p50_ms, default=None)
