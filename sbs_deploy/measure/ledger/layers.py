"""Three ledgers joined by layer: paper BOPs, BOPs as the legalised graph executes them, and measured time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sbs_deploy.backends.spec import Backend
from sbs_deploy.measure.ledger.execution import Execution
from sbs_deploy.measure.ledger.gain import UNTRUSTED, Lever, Realised, advice, levers, realised
from sbs_deploy.measure.ledger.padding import Padding, aligned, padding_of
from sbs_deploy.measure.ledger.rank import Agreement, agreement
from sbs_deploy.measure.ledger.verdict import Facts, LayerEntry, Verdict, judge
from sbs_train.contract import cost
from sbs_train.contract.plan import LayerPlan, Plan
from sbs_train.contract.results import TimedRow

DISTURBED = 2.5
"""Largest sum of profiled times over the latency: beyond, the profiler's own time dominates."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Backend and graph of a measured engine."""

    backend: Backend | None
    """Backend; None if this version does not know the backend of the row."""
    executed: Mapping[str, Execution]
    """Layers in the engine's graph."""


@dataclass(frozen=True, kw_only=True)
class LayerLedger:
    """Layer times and verdicts of one engine at one batch size."""

    artifact: str
    label: str
    backend: str
    device: str
    batch: int
    latency_ms: float
    fp32_latency_ms: float
    entries: tuple[LayerEntry, ...]
    between: dict[str, float]
    """Milliseconds of nodes of no layer, by category."""
    profiled: float
    """Sum of the profiler's times over the latency, above 1 as profiling slows the engine. All times in this record are
    the profiler's shares of the latency, so that they add up to the latency."""
    trusted: bool
    """Whether the profile can be used: False if times add up to `DISTURBED` times the latency, or one part alone took
    longer than the whole latency."""
    paper: Agreement
    """Agreement of paper BOPs with time, over the layers."""
    deployable: Agreement
    realised_paper: Realised
    realised_deployable: Realised
    levers: tuple[Lever, ...]
    advice: str
    """A sentence on the largest lever."""
    padding: Padding | None
    """Padding of the plan on the engine's backend."""

    @property
    def title(self) -> str:
        """Title for people."""
        return f"{self.label} · {self.backend}, batch {self.batch}"

    @property
    def verdicts(self) -> dict[Verdict, tuple[int, float]]:
        """(layers, milliseconds) by verdict, the longest first."""
        found: dict[Verdict, tuple[int, float]] = {}
        for entry in self.entries:
            layers, ms = found.get(entry.verdict, (0, 0.0))
            found[entry.verdict] = layers + 1, ms + (entry.ms or 0.0)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def layer_ledger(plan: Plan, row: TimedRow, control: TimedRow, engine: EngineFacts) -> LayerLedger:
    """Join the plan with one measured engine and the dense FP32 control beside it, both rows with `layers`."""
    here, there = _Times(row), _Times(control)
    parts = _together([layer.name for layer in plan.layers], [*here.fused, *there.fused])
    entries = tuple(_entry(plan, names, here, there, engine) for names in parts)
    between = {category: ms for category, ms in here.between.items() if ms > 0}
    timed = [entry for entry in entries if entry.ms]
    measured = [entry.ms or 0.0 for entry in timed]
    latency, fp32 = row.latency_p50_ms, control.latency_p50_ms
    speedup, interval = row.speedup_vs_fp32 or row.faster_than(control), row.speedup_interval
    dense = sum(entry.bops_fp32 for entry in entries)
    found = levers(entries, between)
    trusted = all(one.trusted for one in (here, there))
    return LayerLedger(
        artifact=row.artifact,
        label=row.label,
        backend=row.backend,
        device=row.device or "",
        batch=row.batch,
        latency_ms=latency,
        fp32_latency_ms=fp32,
        entries=entries,
        between=between,
        profiled=here.stretched,
        trusted=trusted,
        paper=agreement([entry.bops_paper for entry in timed], measured),
        deployable=agreement([entry.bops_deployable for entry in timed], measured),
        realised_paper=realised(dense / sum(entry.bops_paper for entry in entries), speedup, interval),
        realised_deployable=realised(dense / sum(entry.bops_deployable for entry in entries), speedup, interval),
        levers=tuple(found),
        advice=advice(found[0] if found else None, latency, speedup) if trusted else UNTRUSTED,
        padding=padding_of(plan, engine.backend),
    )


class _Times:
    """A row's times of layers, as shares of its latency."""

    def __init__(self, row: TimedRow) -> None:
        self.batch = row.batch
        self.own: dict[str, float] = {}
        self.converting: dict[str, float] = {}
        self.between: dict[str, float] = {}
        self.fused: list[tuple[str, ...]] = []
        layers, latency = row.layers or (), row.latency_p50_ms
        profiled_ms = sum(one.ms for one in layers)
        longest_ms = max((one.ms for one in layers), default=0.0)
        self.stretched = profiled_ms / latency
        self.trusted = self.stretched <= DISTURBED and longest_ms <= latency
        scale = latency / profiled_ms if profiled_ms else 0.0
        for one in layers:
            into = self.own if one.category == "layer" else self.converting
            key = one.layer
            if key is None:
                into, key = self.between, one.category
            into[key] = into.get(key, 0.0) + one.ms * scale
            if one.fused and one.layer is not None:
                self.fused.append((one.layer, *one.fused))

    def of(self, names: Iterable[str]) -> float | None:
        """Milliseconds of layers including conversions of their values; None if the engine names none of them."""
        found = [self.own[name] + self.converting.get(name, 0.0) for name in names if name in self.own]
        return sum(found) if found else None


def _together(names: Sequence[str], fused: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The layers in order, grouped if an engine runs several as one."""
    group = {name: {name} for name in names}
    for some in fused:
        joined = set().union(*(group[name] for name in some if name in group))
        for name in joined:
            group[name] = joined
    place = {name: i for i, name in enumerate(names)}
    parts = dict.fromkeys(tuple(sorted(group[name], key=place.__getitem__)) for name in names)
    return list(parts)


def _entry(plan: Plan, names: tuple[str, ...], here: _Times, there: _Times, engine: EngineFacts) -> LayerEntry:
    layers, backend = [plan.layer(name) for name in names], engine.backend
    runs = [engine.executed.get(layer.name) or _as_planned(layer, backend) for layer in layers]
    kept = [plan.kept_macs(layer) for layer in layers]
    longest = layers[kept.index(max(kept))]
    ms, fp32_ms = here.of(names), there.of(names)
    converting = sum(here.converting.get(name, 0.0) for name in names) if ms is not None else 0.0
    intensities = [run.intensity(here.batch) for run in runs]
    facts = Facts(
        fp32_ms=fp32_ms,
        ms=ms,
        converting_ms=converting,
        macs_left=sum(kept) / sum(layer.macs for layer in layers),
        planned_bits=(min(layer.bits_w for layer in layers), min(layer.bits_a for layer in layers)),
        executed_bits=(max(run.bits_w for run in runs), max(run.bits_a for run in runs)),
        depthwise=longest.kind == "depthwise",
        aligned=backend is None or all(aligned(layer, plan, backend.channel_multiple) for layer in layers),
        intensity=min((value for value in intensities if value is not None), default=None),
        on_gpu=backend is not None and backend.run_needs_gpu,
    )
    return LayerEntry(
        layers=names,
        kind=longest.kind,
        bits_w=facts.planned_bits[0],
        bits_a=facts.planned_bits[1],
        executed_w=facts.executed_bits[0],
        executed_a=facts.executed_bits[1],
        kept_out=longest.kept_out,
        size_out=plan.group(longest.group_out).size,
        bops_fp32=sum(cost.bops(float(layer.macs), cost.FP32_BITS, cost.FP32_BITS) for layer in layers),
        bops_paper=sum(cost.bops(macs, layer.bits_w, layer.bits_a) for layer, macs in zip(layers, kept, strict=True)),
        bops_deployable=sum(
            cost.bops(macs if run.macs is None else run.macs, run.bits_w, run.bits_a)
            for run, macs in zip(runs, kept, strict=True)
        ),
        intensity=facts.intensity,
        ms=ms,
        converting_ms=converting,
        fp32_ms=fp32_ms,
        attainable=facts.attainable,
        verdict=judge(facts),
    )


def _as_planned(layer: LayerPlan, backend: Backend | None) -> Execution:
    """The planned execution of a layer that is not found in the graph."""
    container = cost.INT8_BITS if backend is None else backend.container_bits
    bits_w, bits_a = (max(layer.bits_w, container), max(layer.bits_a, container))
    if not layer.quantized:
        bits_w = bits_a = cost.FP32_BITS if backend is None or backend.float_type == "fp32" else 16
    return Execution(bits_w=bits_w, bits_a=bits_a, weights=layer.weights, inputs=None, outputs=None, macs=None)
