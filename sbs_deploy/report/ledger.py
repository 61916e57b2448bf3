"""One run's evidence joined: plan, metrics, manifests, validation and bench.json.

A value that was not measured is None and shows as a dash; nothing is filled in.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.backends.spec import backend_labelled
from sbs_deploy.engines.artifacts import PLANNED, predicted_bops
from sbs_deploy.measure.ledger.alignment import Alignment, alignment_of, channel_multiple
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.measure.ledger.read import run_ledgers
from sbs_deploy.report.codes import Histogram, code_histograms
from sbs_deploy.report.goal import Goal, search_goal
from sbs_deploy.report.history import SearchHistory, search_history
from sbs_deploy.report.provenance import Provenance, recorded_device, run_provenance, train_command
from sbs_deploy.report.stages import StageRow, as_it_lies_here, packed_bytes, stage_rows
from sbs_deploy.report.why import Why, explain
from sbs_deploy.validate.run import validation_is_current
from sbs_train.contract import rundir
from sbs_train.contract.device import SearchDevice, search_device
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.records import Metrics
from sbs_train.contract.results import Bench, Config, Validation, read_document
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.urls import shown


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of the plan."""

    name: str
    kind: str
    bits_w: int
    bits_a: int
    kept_in: int
    size_in: int
    kept_out: int
    size_out: int
    share: float
    """Of the plan's BOPs."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Everything the report shows."""

    run: str
    model: str
    data: str | None
    grid: str
    stages: tuple[StageRow, ...]
    layers: tuple[LayerRow, ...]
    timed: tuple[LayerLedger, ...]
    """Of every engine of the plan whose layers were timed."""
    alignments: dict[str, Alignment | None]
    """By backend that ran the plan, whether its layers were timed or not."""
    codes: tuple[Histogram, ...]
    bench_rows: tuple[dict[str, Any], ...]
    verdicts: tuple[str, ...]
    machine: dict[str, Any]
    """Before anything was measured."""
    measured_at: str | None
    protocol: dict[str, Any]
    validation: dict[str, Any]
    provenance: tuple[Provenance, ...]
    command: str | None
    """What trains the run again; None where its settings are of another version."""
    seed: int | None
    seconds: dict[str, float]
    bops_fp32: float
    bops_paper: float
    bops_slim: float
    """Of the pruned network in FP32."""
    bops_deployable: float
    packed_bytes: float
    """Of the weights at their planned bits."""
    plan_sha256: str
    missing: tuple[str, ...]
    """What has not been made yet, with the command that makes it."""
    history: SearchHistory | None
    """None where the run recorded none."""
    why: Why | None
    goal: Goal | None
    """None where the search had no target."""


def make_ledger(run: RunDir) -> Ledger:
    """Read everything the run holds; only config and plan are required.

    Raises:
        SbsError: the plan is missing or damaged, or bench.json belongs to another plan.
    """
    plan = load_plan(run.require(run.plan, "sbs-train"))
    plan_sha256 = rundir.sha256_of(run.plan)
    train = f"sbs-train --resume --out {run.root}"
    config = read_document(run.config, Config, train)
    metrics = read_document(run.metrics, Metrics, train)
    bench = read_document(run.bench, Bench, f"sbs-deploy bench {run.root}")
    validation = read_document(run.validation, Validation, f"sbs-deploy validate {run.root}")
    if validation and not validation_is_current(run):
        validation = {}
    if bench and bench.get("plan_sha256") != plan_sha256:
        raise SbsError(f"{run.bench} measured another plan; run `sbs-deploy bench` again")
    rows = [as_it_lies_here(run, row) for row in bench.get("rows", ())]
    stale = [row for row, was in zip(rows, bench.get("rows", ()), strict=True) if row is not was]
    device, unread = _device(run, config) if rows else (None, [])
    timed, untimed = run_ledgers(run, plan, rows, device)
    bops = predicted_bops(plan)
    history = search_history(plan, config, metrics)
    return Ledger(
        run=run.root.resolve().name,
        model=plan.model.name,
        data=shown(str(config["data"])) if config.get("data") else None,
        grid=plan.grid,
        stages=tuple(stage_rows(run, plan, metrics, rows, validation)),
        layers=tuple(_layers(plan)),
        timed=tuple(timed),
        alignments=_alignments(plan, rows, device),
        codes=code_histograms(run, plan),
        bench_rows=tuple(rows),
        verdicts=() if stale else tuple(bench.get("verdicts", ())),
        machine=bench.get("machine", {}).get("before", {}),
        measured_at=bench.get("created"),
        protocol=bench.get("protocol", {}),
        validation=validation,
        provenance=tuple(run_provenance(run)),
        command=train_command(run),
        seed=config.get("seed"),
        seconds=metrics.get("seconds", {}),
        bops_fp32=plan.cost.bops_fp32,
        bops_paper=plan.cost.bops,
        bops_slim=bops["slim"],
        bops_deployable=bops["int8"],
        packed_bytes=packed_bytes(plan),
        plan_sha256=plan_sha256,
        missing=(
            *_missing(run, validation),
            *(f"{row['artifact']}: {row['error']}" for row in stale),
            *unread,
            *untimed,
        ),
        history=history,
        why=None if history is None else explain(plan, history),
        goal=search_goal(plan, config, metrics, rows, device),
    )


def _missing(run: RunDir, validation: dict[str, Any]) -> list[str]:
    return [
        f"{path.name} (make it with `{command}`)"
        for path, command in (
            (run.metrics, "sbs-train"),
            (run.validation, "sbs-deploy validate"),
            (run.bench, "sbs-deploy bench"),
        )
        if not path.is_file() or (path == run.validation and not validation)
    ]


def _layers(plan: Plan) -> list[LayerRow]:
    return [
        LayerRow(
            name=layer.name,
            kind=layer.kind,
            bits_w=layer.bits_w,
            bits_a=layer.bits_a,
            kept_in=layer.kept_in,
            size_in=plan.group(layer.group_in).size,
            kept_out=layer.kept_out,
            size_out=plan.group(layer.group_out).size,
            share=plan.cost.shares[layer.name],
        )
        for layer in plan.layers
    ]


def _device(run: RunDir, config: dict[str, Any]) -> tuple[SearchDevice | None, list[str]]:
    """(The device of `--cost`, if any; in words, why it is not known any more).

    What the run recorded of it goes before the file, which may be gone or another one by now.
    """
    recorded, path = recorded_device(run), config.get("cost")
    if recorded is not None or path is None:
        return recorded, []
    try:
        return search_device(Path(path)), []
    except SbsError as error:
        return None, [f"the multiple of channels on the search's device; its target's usual multiple counts ({error})"]


def _alignments(plan: Plan, rows: list[dict[str, Any]], device: SearchDevice | None) -> dict[str, Alignment | None]:
    ran = dict.fromkeys(row["backend"] for row in rows if row["precision"] in PLANNED and row["error"] is None)
    targets = {backend: backend_labelled(backend) for backend in ran}
    return {name: alignment_of(plan, one, channel_multiple(one, device)) for name, one in targets.items()}
