"""The stages of a run, from the float network to the engines, with accuracy and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.backends.spec import DEFAULT_BACKEND
from sbs_train.contract import cost, rundir
from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Metrics, StageMetrics
from sbs_train.contract.results import Row, TimedRow
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Validation

TOP1 = "top1"
"""The score that a validation knows, where the task has classes."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One line of the summary table."""

    stage: str
    score: float | None = None
    """The task's score on the test set; None where it is not known."""
    score_name: str = ""
    """Name of the score, such as top1."""
    bops: float
    """Bit-Operations of one image: as planned for a training stage, as executed for an engine."""
    reduction: float
    """BOPs of dense FP32 over `bops`."""
    size_bytes: float | None
    """Weights at their planned bits for a training stage; the file for an engine."""
    latency_p50_ms: float | None = None
    speedup: float | None = None
    """Over dense FP32, measured in the same rounds."""
    artifact: str | None = None
    """The file of bench.json; None for a training stage."""
    note: str = ""


def stage_rows(
    run: RunDir, plan: Plan, metrics: Metrics, rows: Sequence[Row], validation: Validation | None
) -> list[StageRow]:
    """Training stages, then artifacts as measured at the smallest batch size.

    Args:
        rows: rows of bench.json after `as_it_lies_here`.
    """
    batch = min((row.batch for row in rows), default=1)
    measured = [row for row in rows if row.batch == batch]
    # A control may run on several backends: the first measured row is shown.
    by_name: dict[str, Row] = {}
    for row in sorted(measured, key=lambda row: row.error is not None):
        by_name.setdefault(row.artifact, row)
    dense, slim = (by_name.get(f"deploy/{path.name}") for path in (run.model_fp32, run.model_slim))
    timed = dense if isinstance(dense, TimedRow) else None
    stages = [
        StageRow(
            stage="fp32",
            **_scored(metrics.fp32),
            bops=plan.cost.bops_fp32,
            reduction=1.0,
            size_bytes=float(sum(layer.weights for layer in plan.layers) * 4),
            latency_p50_ms=timed.latency_p50_ms if timed else None,
            speedup=timed.speedup_vs_fp32 if timed else None,
            artifact=dense.artifact if dense else None,
            note=(dense and dense.device) or "",
        )
    ]
    stages += [
        StageRow(
            stage=name,
            **_scored(stage),
            bops=plan.cost.bops,
            reduction=plan.cost.reduction,
            size_bytes=packed_bytes(plan),
            note="as planned",
        )
        for name, stage in (("search", metrics.search), ("finetune", metrics.finetune))
        if name in metrics.model_fields_set
    ]
    if slim is not None:
        stages.append(_measured(run, slim, None, plan.slim_bops(), plan))
    top1 = validation.top1_integer if validation else None
    stages += [
        _measured(run, row, top1 if _validated(run, row) else None, row.predicted_bops, plan)
        for row in measured
        if row is not slim and row is not dense and (row.error is None or not row.control)
    ]
    return stages


def _scored(stage: StageMetrics | None) -> dict[str, Any]:
    return {} if stage is None or stage.score is None else {"score": stage.score, "score_name": stage.score_name}


def _measured(run: RunDir, row: Row, top1: float | None, bops: float, plan: Plan) -> StageRow:
    path, timed = run.root / row.artifact, row if isinstance(row, TimedRow) else None
    return StageRow(
        stage=f"{row.label} · {row.backend}",
        score=top1,
        score_name="" if top1 is None else TOP1,
        bops=bops,
        reduction=plan.cost.bops_fp32 / bops,
        size_bytes=float(path.stat().st_size) if path.is_file() else None,
        latency_p50_ms=timed.latency_p50_ms if timed else None,
        speedup=timed.speedup_vs_fp32 if timed else None,
        artifact=row.artifact,
        note=row.error or row.device or "",
    )


def as_it_lies_here(run: RunDir, row: Row) -> Row:
    """A row of bench.json; with an error instead of numbers if its file was rebuilt since."""
    path = run.root / row.artifact
    if row.sha256 is None or not path.is_file() or rundir.sha256_of(path) == row.sha256:
        return row
    about = row.model_dump(include=set(Row.model_fields))
    return Row(**about | {"error": "changed since it was measured; run `sbs-deploy bench`"})


def _validated(run: RunDir, row: Row) -> bool:
    """Whether validation.json's accuracy belongs to this row's graph and kernels."""
    if row.precision != "int8" or row.backend != DEFAULT_BACKEND.label:
        return False
    path = run.root / row.artifact
    if path == run.model_ort:
        return True
    made_from = rundir.read_manifest(path).made_from if rundir.manifest_path(path).is_file() else {}
    return run.model_ort.is_file() and made_from.get(run.model_ort.name) == rundir.sha256_of(run.model_ort)


def packed_bytes(plan: Plan) -> float:
    """Bytes of the weights of the pruned network at their planned bits."""
    return sum(cost.weight_bytes(plan.kept_weights(layer), layer.bits_w) for layer in plan.layers)
