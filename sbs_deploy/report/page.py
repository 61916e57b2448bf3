"""One self-contained HTML file: opens offline, loads nothing, escapes every name it was given."""

import json
from pathlib import Path
from typing import Any

from sbs_deploy.report import charts, history_charts, units
from sbs_deploy.report.ledger import Ledger
from sbs_train.contract import rundir


def write_page(ledger: Ledger, path: Path) -> None:
    """Render the report and write it atomically."""
    rundir.write_text(path, page_from_ledger(ledger))


def page_from_ledger(ledger: Ledger) -> str:
    """The HTML page; plotly's script is inlined once."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sbs_deploy.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "si": units.si,
        "percent": units.percent,
        "times": units.times,
        "milliseconds": units.milliseconds,
        "signed": units.signed,
    }
    figures = {"plan": charts.plan_chart(ledger.layers), "latency": charts.latency_chart(ledger)}
    if ledger.history is not None:
        figures |= {
            "search": history_charts.search_chart(ledger.history),
            "weights-over-time": history_charts.bits_over_time(ledger.history, "bits_w"),
            "activations-over-time": history_charts.bits_over_time(ledger.history, "bits_a"),
            "kept-over-time": history_charts.kept_over_time(ledger.history),
        }
    return environment.get_template("page.html.j2").render(
        ledger=ledger,
        plotly_js=get_plotlyjs(),
        figures={name: script_json(figure) for name, figure in figures.items() if figure is not None},
        low_bits=any(min(row.bits_w, row.bits_a) < 8 for row in ledger.layers),
    )


def script_json(figure: Any) -> str:
    """A figure as JSON that may stand in a script element: no character of it can end the element."""
    text = json.dumps(json.loads(figure.to_json()), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
