"""`sbs-deploy bench`: every artifact that can run here, interleaved with its controls, written to bench.json."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sbs_deploy.bench import clocks
from sbs_deploy.bench.artifacts import PLANNED, Artifact, find_artifacts
from sbs_deploy.bench.protocol import COV_LIMIT, Measurement, Protocol, measure, speedup
from sbs_deploy.engine.base import Engine, FloatArray
from sbs_deploy.export.codes import load_golden
from sbs_deploy.targets import ONNXRUNTIME, OPENVINO
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir

Row = dict[str, Any]
"""One line of the table: what ran, its latency, or an "error" in its place."""


def bench_run(
    run: RunDir,
    *,
    batches: Sequence[int],
    against: Sequence[str],
    threads: int,
    builds: int,
    protocol: Protocol,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure every artifact of the run at every batch size and write bench.json.

    Speed-ups are against the dense FP32 network on the same device, in the same rounds; where only a slim FP32 engine
    runs there, against that, and the row says so.
    """
    _check_settings(batches, threads, builds)
    plan = load_plan(run.require(run.plan, "sbs-train"))
    run.require(run.model_fp32, "sbs-deploy build")
    artifacts = find_artifacts(run, plan, against=tuple(against), threads=threads)
    before = clocks.machine_state()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        opened = [(artifact, *_open(artifact, builds, stack)) for artifact in artifacts]
        for batch in batches:
            progress(f"batch {batch}: {sum(bool(engines) for _, engines, _ in opened)} artifacts, {threads} thread(s)")
            rows += _rows_of_batch(run, plan, opened, batch, threads, protocol)
    if all(row["error"] is not None for row in rows):
        raise SbsError(f"nothing could be measured: {rows[0]['error']}")
    document = {
        "schema_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"before": before.as_json(), "after": clocks.machine_state().as_json()},
        "protocol": asdict(protocol) | {"threads": threads, "builds": builds, "batches": list(batches)},
        "plan_sha256": rundir.sha256_of(run.plan),
        "rows": rows,
        "verdicts": verdicts(rows),
    }
    rundir.write_json(run.bench, document)
    return rows


def verdicts(rows: Sequence[Row]) -> list[str]:
    """In words, what each INT8 artifact gained or lost against dense FP32."""
    said: list[str] = []
    for row in rows:
        if row["precision"] not in PLANNED:
            continue
        name = row["precision"].upper()
        where = f"{row['artifact']} at batch {row['batch']}"
        if row["error"] is not None:
            reason = f"{row['artifact']} was not measured: {row['error']}"
            said += [] if reason in said else [reason]
        elif (ratio := row["speedup_vs_fp32"]) is None:
            said.append(f"{where} has no FP32 control on the same device")
        elif ratio < 1:
            said.append(f"{name} is SLOWER than FP32 here: {where} runs at {ratio:.2f}x its speed")
        else:
            said.append(f"{name} is {ratio:.2f}x as fast as FP32: {where}")
    return said


def bench_inputs(run: RunDir, plan: Plan, batch: int) -> FloatArray:
    """`batch` images (N, C, H, W): golden ones, repeated as needed, or noise where there are none."""
    if run.golden.is_file():
        images = load_golden(run.golden)["inputs"].astype(np.float32)
    else:
        shape = (batch, plan.input.channels, plan.input.height, plan.input.width)
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
    repeated: FloatArray = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
    return repeated


def _check_settings(batches: Sequence[int], threads: int, builds: int) -> None:
    if not batches or min(batches) < 1:
        raise SbsError("--batch needs one or more sizes of at least 1, such as --batch 1 8")
    for flag, value in (("--threads", threads), ("--builds", builds)):
        if value < 1:
            raise SbsError(f"{flag} {value} must be at least 1")


def _open(artifact: Artifact, builds: int, stack: contextlib.ExitStack) -> tuple[list[Engine], str | None]:
    """The artifact's engines, loaded `builds` times, or none and the reason."""
    try:
        return [stack.enter_context(artifact.open()) for _ in range(builds)], None
    except SbsError as error:
        return [], str(error)


Opened = tuple[Artifact, list[Engine], str | None]


def _rows_of_batch(
    run: RunDir, plan: Plan, opened: list[Opened], batch: int, threads: int, protocol: Protocol
) -> list[Row]:
    inputs = bench_inputs(run, plan, batch)
    contestants: dict[str, Callable[[], float]] = {}
    errors: dict[int, str] = {}
    for index, (_, engines, error) in enumerate(opened):
        if error is not None:
            errors[index] = error
            continue
        try:
            for engine in engines:
                engine.run(inputs)
        except SbsError as refusal:
            errors[index] = str(refusal)
            continue
        for build, engine in enumerate(engines):
            contestants[f"{index}.{build}"] = _contestant(engine, inputs)
    times = measure(contestants, protocol)
    pooled: dict[int, Measurement] = {}
    for index, (_, engines, _) in enumerate(opened):
        own = [times[key] for build in range(len(engines)) if (key := f"{index}.{build}") in times]
        if own:
            rounds = zip(*(one.rounds_ms for one in own), strict=True)
            warm = all(one.warm for one in own)
            pooled[index] = Measurement(rounds_ms=tuple(sum(parts, ()) for parts in rounds), warm=warm)
    controls: dict[str, tuple[Artifact, Measurement]] = {}
    for i, measurement in pooled.items():
        artifact, device = opened[i][0], opened[i][1][0].device
        if artifact.precision == "fp32" and (device not in controls or artifact.path == run.model_fp32):
            controls[device] = artifact, measurement
    return [
        _row(artifact, engines, batch, threads, run, pooled.get(i), controls, errors.get(i))
        for i, (artifact, engines, _) in enumerate(opened)
    ]


def _contestant(engine: Engine, inputs: FloatArray) -> Callable[[], float]:
    return lambda: engine.latency_ms(inputs)


def _row(
    artifact: Artifact,
    engines: list[Engine],
    batch: int,
    threads: int,
    run: RunDir,
    measurement: Measurement | None,
    controls: dict[str, tuple[Artifact, Measurement]],
    error: str | None,
) -> Row:
    """One result; its numbers are None where there is an error."""
    latency = measurement.latency() if measurement else None
    device = engines[0].device if engines else None
    control = controls.get(device) if device else None
    ratio = speedup(control[1], measurement) if control and measurement else None
    warnings = []
    if latency is not None and not latency.steady:
        warnings.append(f"times vary by {latency.cov:.1%} (limit {COV_LIMIT:.1%}): trust no small difference")
    if measurement is not None and not measurement.warm:
        warnings.append("times were still moving when the warm-up ended")
    return {
        "artifact": _relative(artifact.path, run.root),
        "sha256": rundir.sha256_of(artifact.path) if artifact.path.is_file() else None,
        "label": artifact.label,
        "backend": artifact.backend,
        "device": device,
        "precision": artifact.precision,
        "control": artifact.control,
        "batch": batch,
        "threads": threads if artifact.backend in (ONNXRUNTIME.name, OPENVINO.name) else None,
        "latency_p50_ms": latency.p50_ms if latency else None,
        "latency_p50_interval_ms": list(latency.p50_interval_ms) if latency else None,
        "images_per_second": 1e3 * batch / latency.p50_ms if latency else None,
        "p90": latency.p90_ms if latency else None,
        "p99": latency.p99_ms if latency else None,
        "cov": latency.cov if latency else None,
        "iterations": latency.iterations if latency else None,
        "builds": len(engines),
        "speedup_vs_fp32": ratio[0] if ratio else None,
        "speedup_interval": list(ratio[1:]) if ratio else None,
        "speedup_over": _relative(control[0].path, run.root) if ratio and control else None,
        "predicted_bops": artifact.predicted_bops,
        "warnings": warnings,
        "error": error,
    }


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
