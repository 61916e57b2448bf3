"""The command on any ONNX file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from sbs_deploy.commands.base import Output
from sbs_train.contract import console

RuleChoice = Literal["auto", "trt", "ort"]


@dataclass(frozen=True, kw_only=True)
class Lint(Output):
    """What would make a quantized ONNX file slow or refused on a target; exit 1 for what is refused."""

    model: tyro.conf.Positional[Path]
    """Any ONNX file, ours or not."""
    rules: RuleChoice = "auto"
    """trt: TensorRT. ort: ONNX Runtime. auto: the target of a file that sbs-deploy exported, both for any other."""
    fix: Path | None = None
    """Write here a model that computes the same with all repaired that can be, and lint that one."""

    def execute(self) -> int:
        """Lint, and show what was found."""
        from sbs_deploy.lint.fix import fix_model
        from sbs_deploy.lint.run import lint_model, load_model, rule_sets
        from sbs_deploy.lint.table import findings_table
        from sbs_deploy.report.table import print_table

        model = load_model(self.model)
        rules = rule_sets(self.model, model) if self.rules == "auto" else (self.rules,)
        repaired = []
        if self.fix is None:
            linted = lint_model(model, rules)
        else:
            fixed = fix_model(model, rules, source=self.model, destination=self.fix)
            repaired, linted = fixed.repaired, fixed.left
        if linted.findings:
            print_table(findings_table(linted.findings))
        warnings = len(linted.findings) - linted.errors
        print(f"{linted.errors} errors, {warnings} warnings by the rules for {' and '.join(rules)}")
        if self.fix is not None:
            print(f"{len(repaired)} repaired in {self.fix}")
        if self.json:
            console.print_json(
                {
                    "model": str(self.model),
                    "rules": list(rules),
                    "findings": [finding.as_json() for finding in linted.findings],
                    "fixed": [finding.as_json() for finding in repaired],
                }
            )
        return 1 if linted.errors else 0
