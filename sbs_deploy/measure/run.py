"""`sbs-deploy bench`: every artifact that can run here, interleaved with its controls, written to bench.json."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from sbs_deploy.engines.artifacts import PLANNED, find_artifacts
from sbs_deploy.export.golden_file import load_golden, specs_of
from sbs_deploy.graph.arrays import Arrays, noise, repeated
from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.rows import open_artifact, rows_of_batch, with_layers
from sbs_deploy.measure.warn import machine_warnings, undecided
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.results import BenchFile, BenchProtocol, Machines, Row, TimedRow, write_bench
from sbs_train.contract.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of `sbs-deploy bench`; SbsError if a setting is out of range."""

    batches: tuple[int, ...] = (1,)
    against: tuple[str, ...] = ("fp32", "slim")
    """Float controls to measure with the plan's engines."""
    threads: int = 1
    """Threads inside an operator, on a CPU."""
    builds: int = 1
    """Number of engines per artifact: the existing engine and new builds of its graph."""
    protocol: Protocol = field(default_factory=Protocol)

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise SbsError("--batch needs one or more sizes of at least 1, such as --batch 1 8")
        for flag, value in (("threads", self.threads), ("builds", self.builds), ("rounds", self.protocol.rounds)):
            if value < 1:
                raise SbsError(f"--{flag} {value} must be at least 1")


def bench_run(run: RunDir, settings: BenchSettings, progress: Callable[[str], None]) -> list[Row]:
    """Measure every artifact of the run at every batch size, with the times of its layers, and write bench.json.

    Speed-ups are over dense FP32 on the same device, in the same rounds; if only a slim FP32 engine runs there, over
    that engine, which the row names.
    """
    plan = load_plan(run.require(run.plan, "sbs-train"))
    run.require(run.model_fp32, "sbs-deploy build")
    artifacts = find_artifacts(run, plan, against=settings.against, threads=settings.threads)
    layers = [layer.name for layer in plan.layers]
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        opened = [open_artifact(artifact, settings.builds, stack, progress) for artifact in artifacts]
        before = clocks.machine_state()  # after builds, which take minutes
        able = sum(bool(one.builds) for one in opened)
        for batch in settings.batches:
            progress(f"batch {batch}: {able} artifacts, {settings.threads} thread(s)")
            inputs = bench_inputs(run, plan, batch)
            measured = rows_of_batch(opened, inputs, batch, settings.protocol, run.root)
            rows += [with_layers(row, one, inputs, layers) for row, one in zip(measured, opened, strict=True)]
        machine = Machines(before=before, after=clocks.machine_state())  # while engines are still loaded
    if not any(isinstance(row, TimedRow) for row in rows):
        raise SbsError(f"nothing could be measured: {rows[0].error}")
    gpu = {artifact.backend for artifact in artifacts if artifact.on_gpu}
    for i, row in enumerate(rows):
        if isinstance(row, TimedRow):
            warnings = (*row.warnings, *machine_warnings(machine, on_gpu=row.backend in gpu))
            rows[i] = row.model_copy(update={"warnings": warnings})
    protocol = asdict(settings.protocol)
    protocol |= {"threads": settings.threads, "builds": settings.builds, "batches": settings.batches}
    bench = BenchFile(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=machine,
        protocol=BenchProtocol(**protocol),
        plan_sha256=rundir.sha256_of(run.plan),
        rows=tuple(rows),
        verdicts=tuple(verdicts(rows)),
    )
    write_bench(bench, run)
    return rows


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence on the speed-up of each INT8 artifact over dense FP32."""
    said: list[str] = []
    for row in rows:
        if row.precision not in PLANNED:
            continue
        name, where = row.precision.upper(), f"{row.artifact} at batch {row.batch}"
        name = f"{name} with every layer in float" if row.layers_in_integers == 0 else name
        if not isinstance(row, TimedRow):
            reason = f"{row.artifact} was not measured: {row.error}"
            said += [] if reason in said else [reason]
        elif (ratio := row.speedup_vs_fp32) is None and row.speedup_interval is not None:
            said.append(f"no verdict on {name} for {where}: {undecided(row.speedup_interval)}")
        elif ratio is None:
            said.append(f"{where} has no FP32 control on the same device")
        elif ratio < 1:
            said.append(f"{name} is SLOWER than FP32 here: {where} runs at {ratio:.2f}x its speed")
        else:
            said.append(f"{name} is {ratio:.2f}x as fast as FP32: {where}")
    return said


def bench_inputs(run: RunDir, plan: Plan, batch: int) -> Arrays:
    """Inputs of `batch` samples: golden samples, repeated as needed, or noise without golden samples."""
    if not run.golden.is_file():
        return noise(specs_of(plan)[0], batch)
    golden = load_golden(run.golden, plan)
    return repeated(golden.inputs, golden.input_specs, batch)
