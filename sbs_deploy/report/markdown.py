"""The summary as Markdown, for a pull request."""

import re
from collections.abc import Sequence

from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.report.comparison import Comparison
from sbs_deploy.report.ledger import Ledger
from sbs_deploy.report.summary import sentences, summarise

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&@-])")


def markdown_from_ledger(ledger: Ledger) -> str:
    """Sentences, the table of stages, and what came of the layers."""
    summary = summarise(ledger)
    lines = [f"### {escape(ledger.model)} · run {escape(ledger.run)}", ""]
    lines += [escape(" ".join(sentences(summary))), ""]
    lines += table(
        ("stage", "top-1", "BOPs", "reduction", "size", "latency p50", "speed-up"),
        [
            (
                row.stage,
                units.percent(row.top1),
                units.si(row.bops),
                units.times(row.reduction),
                units.si(row.size_bytes, "B"),
                units.milliseconds(row.latency_p50_ms),
                units.times(row.speedup),
            )
            for row in ledger.stages
        ],
    )
    for timed in ledger.timed:
        lines += ["", *_layers(timed)]
    if ledger.missing:
        lines += ["", *(f"- Not in this report: {escape(item)}" for item in ledger.missing)]
    lines += ["", f"Plan `{ledger.plan_sha256[:12]}`" + _where(ledger)]
    return "\n".join(lines) + "\n"


def markdown_from_runs(comparison: Comparison) -> str:
    """What was mixed, in words, and the table of the runs."""
    lines = ["### Runs", "", *(f"- {escape(note)}" for note in comparison.notes), ""]
    lines += table(
        ("run", "model", "top-1", "FP32", "fewer BOPs", "fewer as executed", "size", "latency p50", "speed-up"),
        [
            (
                point.name,
                point.model,
                units.percent(point.top1),
                units.percent(point.top1_fp32),
                units.times(point.reduction_paper),
                units.times(point.reduction_deployable),
                units.si(point.size_bytes, "B"),
                units.milliseconds(point.latency_ms),
                units.times(point.speedup),
            )
            for point in comparison.points
        ],
    )
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column to the left, numbers to the right.

    >>> table(("a", "b"), [("x|y", "1 %")])
    ['| a | b |', '|:--|--:|', '| x\\\\|y | 1 % |']
    """
    rule = "|:--|" + "--:|" * (len(head) - 1)
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(map(escape, row)) + " |" for row in rows)]


def escape(text: str) -> str:
    """Text in which nothing is markup, on one line; what stands for nothing in the middle of a word is left alone."""
    plain = " ".join(text.split())
    return re.sub(r"(?<=\w)\\([-_+])(?=\w)|\\([-()+])", lambda m: m[1] or m[2], _SPECIAL.sub(r"\\\1", plain))


def _layers(timed: LayerLedger) -> list[str]:
    counts = ", ".join(
        f"{verdict}: {layers} ({units.milliseconds(ms)})" for verdict, (layers, ms) in timed.verdicts.items()
    )
    between = ", ".join(f"{category} {units.milliseconds(ms)}" for category, ms in timed.between.items())
    ranks = [
        f"{name} {units.estimate(found.kendall)}"
        for name, found in (("on paper", timed.paper), ("as executed", timed.deployable))
    ]
    return [
        f"**Layers of {escape(timed.title)}.** {escape(counts)}."
        + (f" Between layers: {escape(between)}." if between else ""),
        ("" if timed.trusted else "**Profiling disturbed these times too much to go by them.** ")
        + f"Kendall's tau of BOPs and time: {'; '.join(ranks)}. Realised of the predicted gain: "
        f"{units.share(timed.realised_paper.share)} of that on paper, "
        f"{units.share(timed.realised_deployable.share)} of that as executed.",
    ]


def _where(ledger: Ledger) -> str:
    parts = [str(ledger.machine[key]) for key in ("cpu", "os") if ledger.machine.get(key)]
    return f", measured on {escape(', '.join(parts))}" if parts else ""
