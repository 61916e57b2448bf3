"""`sbs-deploy bench`: every artifact that can run here, interleaved with its controls, written to bench.json."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from sbs_deploy.engines.artifacts import PLANNED, find_artifacts
from sbs_deploy.export.codes import load_golden
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.rows import Row, add_layers, open_artifact, rows_of_batch
from sbs_deploy.measure.warn import machine_warnings
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir


def bench_run(
    run: RunDir,
    *,
    batches: Sequence[int],
    against: Sequence[str],
    threads: int,
    builds: int,
    protocol: Protocol,
    progress: Callable[[str], None],
    layers: bool = False,
) -> list[Row]:
    """Measure every artifact of the run at every batch size and write bench.json.

    Speed-ups are against the dense FP32 network on the same device, in the same rounds; where only a slim FP32 engine
    runs there, against that, and the row says so.

    Args:
        builds: engines of each artifact: the one that lies there, and others made of the same graph.
        layers: whether each row gets the times of the plan's layers.
    """
    _check_settings(batches, threads, builds)
    plan = load_plan(run.require(run.plan, "sbs-train"))
    run.require(run.model_fp32, "sbs-deploy build")
    artifacts = find_artifacts(run, plan, against=tuple(against), threads=threads)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        opened = [open_artifact(artifact, builds, stack, progress) for artifact in artifacts]
        before = clocks.machine_state()  # not before builds, which take minutes
        for batch in batches:
            progress(f"batch {batch}: {sum(bool(one.builds) for one in opened)} artifacts, {threads} thread(s)")
            inputs = bench_inputs(run, plan, batch)
            measured = rows_of_batch(opened, inputs, protocol, run.root)
            for row, one in zip(measured, opened, strict=True) if layers else ():
                add_layers(row, one, inputs, [layer.name for layer in plan.layers])
            rows += measured
        after = clocks.machine_state()  # while what was measured is still loaded
    if all(row["error"] is not None for row in rows):
        raise SbsError(f"nothing could be measured: {rows[0]['error']}")
    gpu = {artifact.backend for artifact in artifacts if artifact.on_gpu}
    for row in rows:
        if row["error"] is None:
            row["warnings"] += machine_warnings(before, after, on_gpu=row["backend"] in gpu)
    document = {
        "schema_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"before": before.as_json(), "after": after.as_json()},
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
