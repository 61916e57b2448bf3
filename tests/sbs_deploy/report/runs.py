"""Runs whose bench.json was written by hand: times that nobody had to measure, under any names."""

from pathlib import Path
from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.plan import load_plan
from sbs_train.contract.results import Row, TimedRow
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run

FP32_MS = {"conv1": 1.0, "conv2": 6.0, "conv3": 2.0, "fc": 1.0}
INT8_MS = {"conv1": 0.5, "conv2": 1.0, "conv3": 2.5, "fc": 0.5}
ELEMENTWISE_MS = 0.5


def timed_row(**changes: Any) -> TimedRow:
    """A measurement of ONNX Runtime: INT8 takes 5 ms, FP32 took 10."""
    row = {
        "artifact": "deploy/a.onnx",
        "label": "int8",
        "backend": "onnxruntime",
        "device": "cpu of a test",
        "precision": "int8",
        "batch": 1,
        "threads": 1,
        "predicted_bops": 1e6,
        "warnings": (),
        "latency_p50_ms": 5.0,
        "p90": 5.0,
        "p99": 5.0,
        "cov": 0.0,
        "speedup_vs_fp32": 2.0,
    }
    return TimedRow(**(row | changes))


def failed_row(error: str) -> Row:
    """The same artifact where it could not be measured."""
    return Row(**timed_row().model_dump(include=set(Row.model_fields)) | {"error": error})


def bench_row(run: RunDir, name: str, latency_ms: float, layers: dict[str, float], **more: Any) -> dict[str, Any]:
    """A measured row of ONNX Runtime; times of its layers are of the plan's layers in order."""
    names = [layer.name for layer in load_plan(run.plan).layers]
    timed = [
        {"layer": layer, "category": "layer", "ms": ms, "share": ms / latency_ms, "nodes": [], "fused": []}
        for layer, ms in zip(names, layers.values(), strict=True)
    ]
    rest = latency_ms - sum(layers.values())
    if rest > 0:
        other = {"layer": None, "category": "elementwise", "ms": rest, "share": rest / latency_ms, "nodes": []}
        timed.append(other)
    row = {
        "artifact": f"deploy/{name}",
        "sha256": rundir.sha256_of(run.deploy / name),
        "label": "fp32 dense",
        "backend": "onnxruntime",
        "device": "cpu of a test",
        "precision": "fp32",
        "control": True,
        "batch": 1,
        "threads": 1,
        "error": None,
        "predicted_bops": 1e6,
        "latency_p50_ms": latency_ms,
        "p90": 1.1 * latency_ms,
        "p99": 1.2 * latency_ms,
        "cov": 0.01,
        "speedup_vs_fp32": 1.0,
        "speedup_interval": [1.0, 1.0],
        "warnings": [],
        "layers": timed,
        "layers_error": None,
    }
    return row | more


def write_bench(run: RunDir, *, cpu: str = "cpu of a test", int8_ms: float = 5.0, layers: bool = True) -> None:
    """bench.json with dense and slim FP32 and the INT8 model."""
    int8 = {"label": "int8", "precision": "int8", "control": False}
    gain = {"speedup_vs_fp32": 10.0 / int8_ms, "speedup_interval": [9.0 / int8_ms, 11.0 / int8_ms]}
    scale = int8_ms / 5.0
    rows = [
        bench_row(run, run.model_fp32.name, 10.0, FP32_MS),
        bench_row(run, run.model_slim.name, 8.0, {name: 0.8 * ms for name, ms in FP32_MS.items()}, label="fp32 slim"),
        bench_row(run, run.model_ort.name, int8_ms, {name: scale * ms for name, ms in INT8_MS.items()}, **int8, **gain),
    ]
    for row in rows:
        row["device"] = cpu
        if not layers:
            del row["layers"], row["layers_error"]
    rundir.write_json(
        run.bench,
        {
            "schema_version": 1,
            "created": "2026-01-02T03:04:05+00:00",
            "plan_sha256": rundir.sha256_of(run.plan),
            "machine": {"before": {"cpu": cpu, "cores": 2, "vector_flags": ["avx2"], "cpu_mhz": 2000.0}},
            "protocol": {"rounds": 20, "batches": [1]},
            "rows": rows,
            "verdicts": ["INT8 is 2.00x as fast as FP32"],
        },
    )


def measured_run(root: Path, *, cpu: str = "cpu of a test", int8_ms: float = 5.0, **more: Any) -> RunDir:
    """A run with its bench.json."""
    run = make_run(root, **more)
    write_bench(run, cpu=cpu, int8_ms=int8_ms)
    return run
