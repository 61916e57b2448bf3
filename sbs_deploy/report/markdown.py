"""The summary as Markdown, for a pull request."""

import re
from collections.abc import Sequence

from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.placement.words import summary
from sbs_deploy.report.comparison import RunComparison
from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.summary import facts, summarise
from sbs_deploy.report.table import RUNS, STAGES, run_cells, stage_cells

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&@-])")


def markdown_from_ledger(ledger: Ledger) -> str:
    """Markdown of one run: facts, table of stages, verdicts on layers."""
    lines = [f"### {escape(ledger.plan.model.name)} · run {escape(ledger.run)}", ""]
    for fact in facts(summarise(ledger)):
        lines.append(f"- {fact.label}: **{escape(fact.value)}**" + (f" ({escape(fact.note)})" if fact.note else ""))
    lines += ["", *table(STAGES, [stage_cells(row) for row in ledger.stages])]
    for timed in ledger.timed:
        lines += ["", *_layers(timed)]
    for one in ledger.placements:
        lines += ["", f"**Placement of {escape(one.engine)}.** {escape('. '.join(summary(one.placement)))}."]
    if ledger.missing:
        lines += ["", *(f"- Not in this report: {escape(item)}" for item in ledger.missing)]
    lines += ["", f"Plan `{ledger.plan_sha256[:12]}`" + _where(ledger)]
    return "\n".join(lines) + "\n"


def markdown_from_runs(comparison: RunComparison) -> str:
    """Markdown of several runs: notes, and the table of runs."""
    lines = ["### Runs", "", *(f"- {escape(note)}" for note in comparison.notes), ""]
    return "\n".join([*lines, *table(RUNS, [run_cells(point) for point in comparison.points])]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first column is left-aligned, all others right-aligned.

    >>> table(("a", "b"), [("x|y", "1 %")])
    ['| a | b |', '|:--|--:|', '| x\\\\|y | 1 % |']
    """
    rule = "|:--|" + "--:|" * (len(head) - 1)
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(map(escape, row)) + " |" for row in rows)]


def escape(text: str) -> str:
    """Escape a text for Markdown, on one line; characters without meaning inside a word stay."""
    plain = " ".join(text.split())
    return re.sub(r"(?<=\w)\\([-_+])(?=\w)|\\([-()+])", lambda m: m[1] or m[2], _SPECIAL.sub(r"\\\1", plain))


def _layers(timed: LayerLedger) -> list[str]:
    counts = ", ".join(
        f"{verdict}: {layers} ({units.milliseconds(ms)})" for verdict, (layers, ms) in timed.verdicts.items()
    )
    between = ", ".join(f"{category} {units.milliseconds(ms)}" for category, ms in timed.between.items())
    lines = [f"**Layers of {escape(timed.title)}.** {escape(counts)}."]
    lines += [f"Between layers: {escape(between)}."] if between else []
    lines += [] if timed.trusted else ["**Profiling disturbed these times too much to go by them.**"]
    for name, found in (("on paper", timed.paper), ("as executed", timed.deployable)):
        lines.append(f"Kendall's tau of BOPs {name} and time: {units.estimate(found.kendall)}.")
    return lines


def _where(ledger: Ledger) -> str:
    machine = ledger.bench.machine.before
    parts = [part for part in (machine.cpu, machine.os) if part]
    return f", measured on {escape(', '.join(parts))}" if parts else ""
