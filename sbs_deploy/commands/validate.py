"""The command that compares."""

from dataclasses import dataclass

from sbs_deploy.commands.base import PROG, OnRun
from sbs_train.contract import console


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
