"""One run's evidence joined: plan, metrics, manifests, validation and bench.json.

A value that was not measured is None and shows as a dash; nothing is filled in.
"""

from dataclasses import dataclass
from typing import Any

from sbs_deploy.bench.artifacts import DENSE, SLIM, predicted_bops
from sbs_deploy.report.documents import Bench, Config, Metrics, Validation, read_document
from sbs_deploy.report.history import SearchHistory, search_history
from sbs_deploy.report.why import Why, explain
from sbs_deploy.targets import ONNXRUNTIME
from sbs_deploy.validate import validation_is_current
from sbs_train.contract import cost, rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
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
    note: str = ""


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
class Provenance:
    """Where an artifact came from."""

    artifact: str
    sha256: str
    made_from: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Everything the report shows."""

    run: str
    model: str
    grid: str
    stages: tuple[StageRow, ...]
    layers: tuple[LayerRow, ...]
    bench_rows: tuple[dict[str, Any], ...]
    verdicts: tuple[str, ...]
    machine: dict[str, Any]
    protocol: dict[str, Any]
    validation: dict[str, Any]
    provenance: tuple[Provenance, ...]
    seconds: dict[str, float]
    bops_deployable: float
    plan_sha256: str
    missing: tuple[str, ...]
    """What has not been made yet, with the command that makes it."""
    history: SearchHistory | None
    """None where the run recorded none."""
    why: Why | None


def make_ledger(run: RunDir) -> Ledger:
    """Read everything the run holds; only config and plan are required.

    Raises:
        SbsError: the plan is missing or damaged, or bench.json belongs to another plan.
    """
    plan = load_plan(run.require(run.plan, "sbs-train"))
    plan_sha256 = rundir.sha256_of(run.plan)
    metrics = read_document(run.metrics, Metrics, "sbs-train")
    bench = read_document(run.bench, Bench, "sbs-deploy bench")
    validation = read_document(run.validation, Validation, "sbs-deploy validate")
    if validation and not validation_is_current(run):
        validation = {}
    missing = [
        f"{path.name} (make it with `{command}`)"
        for path, command in (
            (run.metrics, "sbs-train"),
            (run.validation, "sbs-deploy validate"),
            (run.bench, "sbs-deploy bench"),
        )
        if not path.is_file() or (path == run.validation and not validation)
    ]
    if bench and bench.get("plan_sha256") != plan_sha256:
        raise SbsError(f"{run.bench} measured another plan; run `sbs-deploy bench` again")
    history = search_history(plan, read_document(run.config, Config, "sbs-train"), metrics)
    return Ledger(
        run=run.root.resolve().name,
        model=plan.model.name,
        grid=plan.grid,
        stages=tuple(_stages(run, plan, metrics, bench, validation)),
        layers=tuple(_layers(plan)),
        bench_rows=tuple(bench.get("rows", ())),
        verdicts=tuple(bench.get("verdicts", ())),
        machine=bench.get("machine", {}).get("before", {}),
        protocol=bench.get("protocol", {}),
        validation=validation,
        provenance=tuple(_provenance(run)),
        seconds=metrics.get("seconds", {}),
        bops_deployable=predicted_bops(plan)["int8"],
        plan_sha256=plan_sha256,
        missing=tuple(missing),
        history=history,
        why=None if history is None else explain(plan, history),
    )


def _stages(
    run: RunDir, plan: Plan, metrics: dict[str, Any], bench: dict[str, Any], validation: dict[str, Any]
) -> list[StageRow]:
    rows: list[dict[str, Any]] = [_as_it_lies_here(run, row) for row in bench.get("rows", ())]
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
            note=dense.get("device") or "",
        )
    ]
    stages += [
        StageRow(
            stage=stage,
            top1=_top1(metrics, stage),
            bops=plan.cost.bops,
            reduction=plan.cost.reduction,
            size_bytes=_packed_bytes(plan),
            latency_p50_ms=None,
            speedup=None,
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
        if row is not slim and row is not dense
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
        note=row["error"] or row["device"] or "",
    )


def _as_it_lies_here(run: RunDir, row: dict[str, Any]) -> dict[str, Any]:
    """A row of bench.json, without its numbers where the file was built again since."""
    path = run.root / row["artifact"]
    if row.get("sha256") is None or not path.is_file() or rundir.sha256_of(path) == row["sha256"]:
        return row
    numbers = dict.fromkeys(("latency_p50_ms", "p90", "p99", "cov", "speedup_vs_fp32"))
    return row | numbers | {"error": "built again since it was measured; run `sbs-deploy bench`"}


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


def _packed_bytes(plan: Plan) -> float:
    """Weights of the pruned network at their planned bits."""
    return sum(
        cost.weight_bytes(
            cost.kept_macs(
                float(layer.weights),
                plan.kept_fraction(layer.group_in),
                plan.kept_fraction(layer.group_out),
                depthwise=layer.kind == "depthwise",
            ),
            layer.bits_w,
        )
        for layer in plan.layers
    )


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


def _provenance(run: RunDir) -> list[Provenance]:
    found = []
    for path in sorted(run.root.rglob("*.manifest.json")):
        artifact = path.with_name(path.name.removesuffix(".manifest.json"))
        if not artifact.is_file():
            continue
        manifest = rundir.read_manifest(artifact)
        found.append(
            Provenance(
                artifact=artifact.relative_to(run.root).as_posix(),
                sha256=manifest.sha256,
                made_from=manifest.made_from,
                versions=manifest.versions,
            )
        )
    return found
