"""The command `sbs-deploy validate`."""

from dataclasses import dataclass

from sbs_deploy.commands.base import PROG, OnRun
from sbs_train.contract import console

CLASSES = ("top1_agreement", "undecided", "agreement_integer", "top1_pytorch", "top1_float_qdq", "top1_integer")
"""Results that a network without classes lacks."""


@dataclass(frozen=True, kw_only=True)
class Validate(OnRun):
    """Compare PyTorch, the ONNX files, integer kernels and engines; exit 1 when they differ too much."""

    def execute(self) -> int:
        """Validate and print the results."""
        from sbs_deploy import api
        from sbs_deploy.build import graph_words, validation_failure
        from sbs_deploy.opening import open_run
        from sbs_deploy.report.validation import output_rows
        from sbs_deploy.validate.engines import in_words

        run = open_run(self.run, console.print_progress)
        report = api.validate(run, trust=self.trust, progress=console.print_progress)
        document = report.model_dump(mode="json")
        for key, value in document.items():
            if not isinstance(value, dict | list) and not (value is None and key in CLASSES):
                print(f"{key:<20}{value}")
        for output, said in output_rows(report):
            print(f"{output:<19} {said}")
        for name, golden in report.graphs.items():
            print(f"{name}: {graph_words(golden)}")
        for verdict in report.engines:
            print(f"{verdict.engine}: {in_words(verdict)}")
        failed = next((one for one in report.engines if one.passed is False), None)
        if report.failures:
            console.print_error(PROG, validation_failure(run, report))
        elif failed is not None:
            console.print_error(PROG, f"validation failed: {failed.engine} {in_words(failed)}; see {run.validation}")
        if self.json:
            console.print_json(document)
        return 0 if report.passed else 1
