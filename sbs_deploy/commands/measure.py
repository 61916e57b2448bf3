"""The command `sbs-deploy bench`."""

from dataclasses import dataclass
from typing import Literal

from sbs_deploy.commands.base import OnRun
from sbs_train.contract import console


@dataclass(frozen=True, kw_only=True)
class Bench(OnRun):
    """Measure the latency of every artifact that can run here, interleaved with its controls."""

    batch: tuple[int, ...] = (1,)
    """Batch sizes."""
    against: tuple[Literal["fp32", "slim", "fp16"], ...] = ("fp32", "slim")
    """Controls: fp32 is the dense network and always measured, fp16 the dense one in FP16, slim the pruned one (in FP16
    where the backend has it). Those of a backend that does not run ONNX files are built when first needed."""
    threads: int = 1
    """Threads inside an operator, on a CPU."""
    builds: int = 1
    """Builds of each artifact to measure: the existing one, and new builds of its graph."""
    rounds: int = 20
    """Turns of every artifact, in random order."""
    layers: bool = False
    """Also print the times of the plan's layers and of the nodes between layers, from the engine's profiler. bench.json
    always has both."""

    def execute(self) -> int:
        """Measure, print the table and say in words who won."""
        from sbs_deploy import api
        from sbs_deploy.measure.protocol import Protocol
        from sbs_deploy.measure.run import verdicts
        from sbs_deploy.report.table import bench_table, layer_table, print_table
        from sbs_train.contract.results import TimedRow, row_json

        rows = api.bench(
            self.run,
            self.batch,
            against=self.against,
            threads=self.threads,
            builds=self.builds,
            protocol=Protocol(rounds=self.rounds),
            trust=self.trust,
            progress=console.print_progress,
        )
        print_table(bench_table(rows))
        for row in rows if self.layers else ():
            if isinstance(row, TimedRow) and row.layers is not None:
                print_table(layer_table(row, row.layers))
            elif isinstance(row, TimedRow):
                console.print_progress(f"no times of layers of {row.artifact}: {row.layers_error}")
        for verdict in verdicts(rows):
            print(verdict)
        refused = [row for row in rows if row.control and row.error is not None]  # verdicts hold other errors
        for why in dict.fromkeys(f"{row.label} on {row.backend}: {row.error}" for row in refused):
            console.print_progress(f"not measured: {why}")
        for row in rows:
            for warning in row.warnings:
                console.print_progress(f"warning: {row.artifact} at batch {row.batch}: {warning}")
        if self.json:
            console.print_json([row_json(row) for row in rows])
        return 0
