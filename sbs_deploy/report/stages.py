"""The stages of a run, from the float network to the engines, each with what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.engines.artifacts import DENSE, SLIM, predicted_bops
from sbs_train.contract import cost, rundir
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One line of the summary table."""

    stage: str
    top1: float | None
    """Percent, on the test set."""
    bops: float
    """Of one image: as planned for a training stage, as executed for an engine."""
    reduction: float
    """FP32 BOPs / bops."""
    size_bytes: float | None
    """Weights at their planned bits for a training stage; the file for an engine."""
    latency_p50_ms: float | None
    speedup: float | None
    """Over dense FP32, measured in the same rounds."""
    artifact: str | None
    """Of bench.json; None for a training stage."""
    note: str = ""


def stage_rows(
    run: RunDir, plan: Plan, metrics: dict[str, Any], rows: Sequence[dict[str, Any]], validation: dict[str, Any]
) -> list[StageRow]:
    """Training stages, then what was measured at the smallest batch size.

    Args:
        rows: of bench.json, `as_it_lies_here`.
    """
    batch = min((row["batch"] for row in rows), default=1)
    measured = [row for row in rows if row["batch"] == batch]
    # A control runs in every backend: the first that was measured stands for it.
    by_name: dict[str, dict[str, Any]] = {}
    for row in sorted(measured, key=lambda row: row["error"] is not None):
        by_name.setdefault(row["artifact"], row)
    bops = predicted_bops(plan)
    dense = by_name.get(f"deploy/{run.model_fp32.name}", {})
    stages = [
        StageRow(
            stage="fp32",
            top1=_top1(metrics, "fp32"),
            bops=bops[DENSE],
            reduction=1.0,
            size_bytes=float(sum(layer.weights for layer in plan.layers) * 4),
            latency_p50_ms=dense.get("latency_p50_ms"),
            speedup=dense.get("speedup_vs_fp32"),
            artifact=dense.get("artifact"),
            note=dense.get("device") or "",
        )
    ]
    stages += [
        StageRow(
            stage=stage,
            top1=_top1(metrics, stage),
            bops=plan.cost.bops,
            reduction=plan.cost.reduction,
            size_bytes=packed_bytes(plan),
            latency_p50_ms=None,
            speedup=None,
            artifact=None,
            note="as planned",
        )
        for stage in ("search", "finetune")
        if stage in metrics
    ]
    slim = by_name.get(f"deploy/{run.model_slim.name}")
    if slim is not None:
        stages.append(_measured(run, slim, None, bops[SLIM], plan))
    top1 = validation.get("top1_integer")
    stages += [
        _measured(run, row, top1 if _validated(run, row) else None, float(row["predicted_bops"]), plan)
        for row in measured
        if row is not slim and row is not dense and not (row["error"] is not None and row.get("control"))
    ]
    return stages


def _measured(run: RunDir, row: dict[str, Any], top1: float | None, bops: float, plan: Plan) -> StageRow:
    path = run.root / row["artifact"]
    return StageRow(
        stage=f"{row['label']} · {row['backend']}",
        top1=top1,
        bops=bops,
        reduction=plan.cost.bops_fp32 / bops,
        size_bytes=float(path.stat().st_size) if path.is_file() else None,
        latency_p50_ms=row["latency_p50_ms"],
        speedup=row["speedup_vs_fp32"],
        artifact=row["artifact"],
        note=row["error"] or row["device"] or "",
    )


def as_it_lies_here(run: RunDir, row: dict[str, Any]) -> dict[str, Any]:
    """A row of bench.json, without its numbers where the file was built again since."""
    path = run.root / row["artifact"]
    if row.get("sha256") is None or not path.is_file() or rundir.sha256_of(path) == row["sha256"]:
        return row
    numbers = dict.fromkeys(("latency_p50_ms", "p90", "p99", "cov", "speedup_vs_fp32"))
    return row | numbers | {"error": "changed since it was measured; run `sbs-deploy bench`"}


def _validated(run: RunDir, row: dict[str, Any]) -> bool:
    """Whether validation ran this row's graph in these kernels: its accuracy is no other engine's."""
    if row["precision"] != "int8" or row["backend"] != ONNXRUNTIME.name:
        return False
    path = run.root / row["artifact"]
    if path == run.model_ort:
        return True
    made_from = rundir.read_manifest(path).made_from if rundir.manifest_path(path).is_file() else {}
    return run.model_ort.is_file() and made_from.get(run.model_ort.name) == rundir.sha256_of(run.model_ort)


def _top1(metrics: dict[str, Any], stage: str) -> float | None:
    value = metrics.get(stage)
    return float(value["top1"]) if isinstance(value, dict) and value.get("top1") is not None else None


def packed_bytes(plan: Plan) -> float:
    """Bytes of the weights of the pruned network at their planned bits."""
    return sum(cost.weight_bytes(plan.kept_weights(layer), layer.bits_w) for layer in plan.layers)
