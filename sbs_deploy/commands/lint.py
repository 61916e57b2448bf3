"""The command `sbs-deploy lint`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from sbs_deploy.commands.base import Output
from sbs_train.contract import console

if TYPE_CHECKING:
    from rich.table import Table

    from sbs_deploy.lint.finding import Finding, Hit, Rule

SHOWN = 4
"""Most nodes named per rule; --json has all."""


@dataclass(frozen=True, kw_only=True)
class Lint(Output):
    """Find what makes a quantized ONNX file slow or refused; exit 1 if something is refused."""

    model: tyro.conf.Positional[Path]
    """Any ONNX file."""
    rules: Literal["auto", "trt", "ort"] = "auto"
    """Dialect of the file, as in model.trt.onnx; auto: the one that sbs-deploy exported, both for any other file."""
    fix: Path | None = None
    """Write a repaired model with equal outputs to this file, and list the remaining findings."""

    def execute(self) -> int:
        """Lint the file, and print the findings."""
        from sbs_deploy.lint.fix import fix_model
        from sbs_deploy.lint.run import lint_file
        from sbs_deploy.report.table import print_table

        linted, repaired = lint_file(self.model, self.rules), []
        if self.fix is not None:
            fixed = fix_model(linted.model, linted.rules, source=self.model, destination=self.fix)
            repaired, linted = fixed.repaired, fixed.left
        if linted.findings:
            print_table(findings_table(linted.findings))
        warnings = len(linted.findings) - linted.errors
        print(f"{linted.errors} errors, {warnings} warnings by the rules for {' and '.join(linted.rules)}")
        if self.fix is not None:
            print(f"{len(repaired)} repaired in {self.fix}")
        if self.json:
            console.print_json(
                {
                    "model": str(self.model),
                    "rules": list(linted.rules),
                    "findings": [finding.as_json() for finding in linted.findings],
                    "fixed": [finding.as_json() for finding in repaired],
                }
            )
        return 1 if linted.errors else 0


def findings_table(findings: "list[Finding]") -> "Table":
    """A table with a row per rule: severity and name, nodes, effect, remedy."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name, ratio in (("rule", 2), ("where", 4), ("what happens", 4), ("what to do", 4)):
        table.add_column(name, overflow="fold", ratio=ratio)
    by_rule: dict[tuple[str, tuple[str, ...]], tuple[Rule, list[Hit]]] = {}
    for finding in findings:
        rule = finding.rule
        by_rule.setdefault((rule.id, rule.dialects), (rule, []))[1].append(finding.hit)
    for rule, hits in by_rule.values():
        shown = [f"{hit.node}: {hit.detail}" if hit.detail else hit.node for hit in hits[:SHOWN]]
        more = [f"and {len(hits) - SHOWN} more"] if len(hits) > SHOWN else []
        fixable = " · --fix can do it" if all(hit.fix is not None for hit in hits) else ""
        head = f"{rule.severity}\n{rule.id}\n{', '.join(rule.dialects)}"
        table.add_row(*(Text(text) for text in (head, "\n".join((*shown, *more)), rule.effect, rule.remedy + fixable)))
    return table
