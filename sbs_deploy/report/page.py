"""Write the report as one self-contained HTML file, which loads nothing; all names are escaped."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.verdict import MEANINGS
from sbs_deploy.report import charts, comparison_charts, gain_charts
from sbs_deploy.report.comparison import RunComparison
from sbs_deploy.report.ledger import Ledger, make_ledger
from sbs_deploy.report.summary import facts, summarise
from sbs_deploy.report.validation import validation_rows
from sbs_train.contract import rundir
from sbs_train.contract.rundir import RunDir

FILTERS = ("si", "percent", "score", "times", "milliseconds", "signed", "share", "number", "estimate")
"""Functions of units.py that templates use."""


def page_from_ledger(ledger: Ledger) -> str:
    """The HTML page of one run."""
    summary = summarise(ledger)
    figures = {
        "bops": gain_charts.bops_waterfall(ledger.plan),
        "steps": gain_charts.latency_waterfall(summary),
        "plan": charts.plan_chart(ledger.plan),
        "codes": gain_charts.codes_chart(ledger.codes),
        "latency": charts.latency_chart(ledger.bench.rows),
        "search": None if ledger.history is None else charts.search_chart(ledger.history),
    }
    for i, timed in enumerate(ledger.timed, 1):
        for name in ("paper", "deployable"):
            figures[f"scatter-{i}-{name}"] = gain_charts.scatter_chart(timed, name)
    return _render(
        "page.html.j2",
        figures,
        ledger=ledger,
        plan=ledger.plan,
        bench=ledger.bench,
        machine=ledger.bench.machine.before.model_dump(exclude_none=True),
        facts=facts(summary),
        summary=summary,
        meanings=MEANINGS,
        validation=[] if ledger.validation is None else [*validation_rows(ledger.validation), *ledger.executed],
        colors=gain_charts.COLORS,
    )


def write_page(run: RunDir, out: Path | None, progress: Callable[[str], None]) -> Ledger:
    """Write the page of a run, into the run unless `out` names another file; returns what it shows.

    Raises:
        SbsError: a file of the run is damaged.
    """
    ledger = make_ledger(run)
    held = rundir.locked(run.root, "sbs-deploy report", wait=progress) if out is None else contextlib.nullcontext()
    with held:
        rundir.write_text(out or run.report, page_from_ledger(ledger))
    return ledger


def page_from_runs(comparison: RunComparison) -> str:
    """The HTML page of several runs."""
    figures = {
        "front-bops": comparison_charts.bops_front(comparison.points),
        "front-latency": comparison_charts.latency_front(comparison.points),
        "front-size": comparison_charts.size_front(comparison.points),
    }
    return _render("runs.html.j2", figures, comparison=comparison)


def script_json(figure: Any) -> str:
    """A figure as JSON for a script element, without characters that could end the element."""
    text = json.dumps(json.loads(figure.to_json()), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _render(template: str, figures: Mapping[str, Any], **values: Any) -> str:
    """Render a template with its figures; plotly's script is inlined once."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sbs_deploy.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(units, name) for name in FILTERS}
    drawn = {name: script_json(figure) for name, figure in figures.items() if figure is not None}
    return environment.get_template(template).render(figures=drawn, plotly_js=get_plotlyjs(), **values) + "\n"
