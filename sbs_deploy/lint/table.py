"""The findings as people read them: one row a rule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_deploy.lint.finding import Finding, Hit, Rule

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 4
"""Nodes of a rule that are named; --json has all."""


def findings_table(findings: Sequence[Finding]) -> "Table":
    """Severity and rule, where, what happens, what to do."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name, ratio in (("rule", 2), ("where", 4), ("what happens", 4), ("what to do", 4)):
        table.add_column(name, overflow="fold", ratio=ratio)
    by_rule: dict[tuple[str, tuple[str, ...]], tuple[Rule, list[Hit]]] = {}
    for finding in findings:
        rule = finding.rule
        by_rule.setdefault((rule.id, rule.targets), (rule, []))[1].append(finding.hit)
    for rule, hits in by_rule.values():
        shown = [f"{hit.node}: {hit.detail}" if hit.detail else hit.node for hit in hits[:SHOWN]]
        more = [f"and {len(hits) - SHOWN} more"] if len(hits) > SHOWN else []
        fixable = " · --fix can do it" if all(hit.fix is not None for hit in hits) else ""
        head = f"{rule.severity}\n{rule.id}\n{', '.join(rule.targets)}"
        table.add_row(*(Text(text) for text in (head, "\n".join((*shown, *more)), rule.effect, rule.remedy + fixable)))
    return table
