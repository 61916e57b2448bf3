"""The command `sbs-deploy evaluate`."""

from dataclasses import dataclass
from typing import Literal

from sbs_deploy.backends.spec import BackendName, Precision
from sbs_deploy.commands.base import OnRun
from sbs_train.contract import console


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnRun):
    """The task's own metrics of a built engine itself, on the test split. Needs torch, and the run's data."""

    backend: Literal["auto"] | BackendName = "auto"
    """What the engine was built for; auto takes the only engine of the precision."""
    engine: Precision = "int8"
    """Precision of the engine."""
    provider: Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"] | None = None
    """With --backend onnxruntime: its execution provider; cpu unless given."""
    device: str | None = None
    """With --backend openvino: CPU, GPU or NPU; the CPU unless given."""
    threads: int = 1
    """Threads inside an operator, on a CPU."""

    def execute(self) -> int:
        """Evaluate the engine and print its metrics."""
        from sbs_deploy import api
        from sbs_deploy.opening import open_run

        found = api.evaluate(
            open_run(self.run, console.print_progress),
            backend=self.backend,
            precision=self.engine,
            provider=self.provider,
            device=self.device,
            threads=self.threads,
            trust=self.trust,
        )
        print(console.metrics_line(found))
        if self.json:
            console.print_json(found)
        return 0
