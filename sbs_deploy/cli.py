"""The command `sbs-deploy`: run directory → ONNX, engine, numbers, report."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from sbs_train.contract import console, rundir

PROG = "sbs-deploy"

Target = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
Precision = Literal["int8", "fp16", "fp32"]
Control = Literal["fp32", "slim", "fp16"]
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What every command takes."""

    json: Flag = False
    """Print one JSON document as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Do the work; returns the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OnRun(Output):
    """What every command on a run takes."""

    run: tyro.conf.Positional[Path] = Path("runs/latest")
    """Run directory that sbs-train made."""

    def open_run(self) -> rundir.RunDir:
        """The run; SbsError if there is none."""
        return rundir.open_run(self.run)


@dataclass(frozen=True, kw_only=True)
class Build(OnRun):
    """Build an engine: export, validate, engine. Stages that are current are skipped."""

    engine: Precision = "int8"
    """int8 is the plan; fp16 and fp32 are the slim network in float, as controls."""
    target: Target = "auto"
    """auto: TensorRT where it is importable and a GPU is there, else TensorRT-RTX ahead of time, else ONNX Runtime."""
    batch_opt: int = 1
    """Batch size a TensorRT engine is tuned for."""
    batch_max: int = 32
    """Largest batch size a TensorRT engine accepts."""

    def execute(self) -> int:
        """Build and say what was done."""
        from sbs_deploy import build
        from sbs_deploy.targets import choose_target

        run = self.open_run()
        options = build.BuildOptions(
            precision=self.engine,
            choice=choose_target(self.target),
            batch_opt=self.batch_opt,
            batch_max=self.batch_max,
        )
        built = build.build_run(run, options, console.print_progress)
        print(built.path)
        if self.json:
            console.print_json(
                {
                    "engine": str(built.path),
                    "target": options.choice.target.name,
                    "why": options.choice.why,
                    "skipped": built.skipped,
                    **built.details,
                }
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(OnRun):
    """Write the ONNX files: dense float, slim float, one quantized model for each dialect, golden inputs."""

    def execute(self) -> int:
        """Export and list the files."""
        from sbs_deploy.build import export_stage

        run = self.open_run()
        export_stage(run, console.print_progress)
        files = (run.model_fp32, run.model_slim, run.model_trt, run.model_ort, run.golden)
        for path in files:
            print(path)
        if self.json:
            console.print_json({path.name: str(path) for path in files})
        return 0


@dataclass(frozen=True, kw_only=True)
class Validate(OnRun):
    """Compare PyTorch, the ONNX files and integer kernels; exit 1 when they differ too much."""

    def execute(self) -> int:
        """Validate and show the figures."""
        from sbs_deploy.build import validation_failure
        from sbs_deploy.validate import validate_run

        run = self.open_run()
        report = validate_run(run)
        document = report.as_json()
        for key, value in document.items():
            if not isinstance(value, dict):
                print(f"{key:<20}{value}")
        if not report.passed:
            console.print_error(PROG, validation_failure(run, document))
        if self.json:
            console.print_json(document)
        return 0 if report.passed else 1


@dataclass(frozen=True, kw_only=True)
class Bench(OnRun):
    """Measure the latency of every artifact that can run here, interleaved with its controls."""

    batch: tuple[int, ...] = (1,)
    """Batch sizes."""
    against: tuple[Control, ...] = ("fp32", "slim")
    """Controls: fp32 is the dense network and always measured, slim the pruned one in float."""
    threads: int = 1
    """Threads inside an operator, on a CPU."""
    builds: int = 1
    """Load each engine so many times and pool the times: loads differ."""
    rounds: int = 20
    """Turns of every artifact, in random order."""

    def execute(self) -> int:
        """Measure, print the table and say in words who won."""
        from sbs_deploy.bench.protocol import Protocol
        from sbs_deploy.bench.run import bench_run, verdicts
        from sbs_deploy.report.table import bench_table, print_table
        from sbs_train.contract.errors import SbsError

        if self.rounds < 1:
            raise SbsError(f"--rounds {self.rounds} must be at least 1")
        run = self.open_run()
        rows = bench_run(
            run,
            batches=self.batch,
            against=self.against,
            threads=self.threads,
            builds=self.builds,
            protocol=Protocol(rounds=self.rounds),
            progress=console.print_progress,
        )
        print_table(bench_table(rows))
        for verdict in verdicts(rows):
            print(verdict)
        for row in rows:
            for warning in row["warnings"]:
                console.print_progress(f"warning: {row['artifact']} at batch {row['batch']}: {warning}")
        if self.json:
            console.print_json(rows)
        return 0


@dataclass(frozen=True, kw_only=True)
class Report(OnRun):
    """Write deploy/report.html and print the summary table."""

    def execute(self) -> int:
        """Join the evidence and render it."""
        from sbs_deploy.report.ledger import make_ledger
        from sbs_deploy.report.page import write_page
        from sbs_deploy.report.table import print_table, summary_table

        run = self.open_run()
        ledger = make_ledger(run)
        write_page(ledger, run.report)
        print_table(summary_table(ledger.stages))
        for verdict in ledger.verdicts:
            print(verdict)
        for item in ledger.missing:
            console.print_progress(f"not in the report: {item}")
        print(f"report: {run.report}")
        if self.json:
            console.print_json({"report": str(run.report), "stages": [asdict(row) for row in ledger.stages]})
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor(Output):
    """What this machine can build and run, and what is missing."""

    def execute(self) -> int:
        """Examine the machine; exit 1 if nothing can be built."""
        from sbs_deploy.doctor import examine

        found = examine()
        _print_findings(found)
        if self.json:
            console.print_json(found)
        return 0 if found["ready"] else 1


COMMANDS: dict[str, Callable[..., Output]] = {
    "build": Build,
    "export": Export,
    "validate": Validate,
    "bench": Bench,
    "report": Report,
    "doctor": Doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command: Output = console.parse_arguments(
            PROG,
            lambda: tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog=PROG, description="From a training run to a measured engine.", args=given
            ),
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return console.run_command(PROG, command.execute, command.verbose)


def _print_findings(found: dict[str, Any]) -> None:
    machine = found["machine"]
    print(
        f"machine  {machine['cpu']}, {machine['cores']} cores, {' '.join(machine['vector_flags']) or 'no vector flags'}"
    )
    print(f"GPU      {found['gpu'] or 'none found'}")
    for package in found["packages"]:
        state = package["version"] or f"missing ({package['purpose']}): {package['install']}"
        print(f"{package['module']:<14} {state}")
    for target in found["targets"]:
        can = [word for word, able in (("build", target["can_build"]), ("run", target["can_run"])) if able]
        print(f"--target {target['target']:<13} {'can ' + ' and '.join(can) if can else 'not usable'}")
        for item in target["missing"]:
            print(f"{'':<23}{item}")
    print(f"--target auto would take {found['auto']['target']}: {found['auto']['why']}")


if __name__ == "__main__":
    raise SystemExit(main())
