"""Results of a sweep for people: a table on the terminal, and sweep.html, a single file that loads nothing."""

import math
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sbs_train.contract import rundir
from sbs_train.contract.sweep import SweepResult, SweepRun
from sbs_train.tables import si

FRONT, BESIDE, KNEE = "#4263eb", "#868e96", "#e03131"
CONFIG = {"responsive": True, "displayModeBar": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""Plotly's settings: no mode bar, which covers the legend and has a button that uploads the chart."""


def sweep_table(result: SweepResult) -> Table:
    """A row per target, the front and its knee marked; the caption says why targets failed."""
    in_ms = result.unit == "ms"
    failed = [f"{row.target}: {row.error}" for row in result.runs if row.error is not None]
    caption = [f"all from one float network with {result.score_name} {result.score_fp32:.2f}", *failed]
    table = Table(title="sweep", caption=escape("\n".join(caption)), caption_justify="left")
    table.add_column("target")
    for column in (
        "speed-up" if in_ms else "reduction",
        result.score_name,
        "BOPs",
        *(["expected ms"] if in_ms else []),
    ):
        table.add_column(column, justify="right")
    table.add_column("front")
    for row in result.runs:
        if row.score is None or row.bops is None or row.reduction is None:
            table.add_row(escape(row.target), *["–"] * (4 if in_ms else 3), "failed")
            continue
        cells = [f"{row.reduction:.4g}x", f"{row.score:.2f}", si(row.bops)]
        cells += [f"{row.expected_ms:.3g}"] if row.expected_ms is not None else []
        front = "knee" if row.knee else "on it" if row.on_front else "no better"
        table.add_row(escape(row.target), *cells, front + ("" if row.reached else ", target not reached"))
    return table


def write_page(result: SweepResult, path: Path) -> None:
    """Render sweep.html and write it atomically."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sbs_train.sweep", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["si"] = si
    chart = front_chart(result).to_html(full_html=False, include_plotlyjs=True, config=CONFIG)
    page = environment.get_template("page.html.j2").render(result=result, chart=chart)
    rundir.write_text(path, page)


def front_chart(result: SweepResult) -> Any:
    """The score over cost on a logarithmic axis: the front as a line, the rest beside it, FP32 as a dotted line."""
    import plotly.graph_objects as go

    in_ms = result.unit == "ms"

    def points(name: str, rows: list[SweepRun], mode: str, **style: Any) -> Any:
        return go.Scatter(
            name=name,
            x=[row.cost for row in rows],
            y=[row.score for row in rows],
            mode=mode,
            text=[row.target for row in rows],
            textposition="top center",
            cliponaxis=False,
            hovertext=[
                f"{row.target}: {result.score_name} {row.score:.2f}, {si(row.bops or math.nan)} BOPs" for row in rows
            ],
            hoverinfo="text",
            **style,
        )

    rows = sorted((row for row in result.runs if row.error is None), key=lambda row: row.cost or 0.0)
    front = [row for row in rows if row.on_front]
    figure = go.Figure(
        [
            points("front", front, "lines+markers+text", line_color=FRONT, marker_size=9),
            points("no better", [row for row in rows if not row.on_front], "markers+text", marker_color=BESIDE),
            points(
                "knee",
                [row for row in front if row.knee],
                "markers",
                marker={"color": KNEE, "size": 16, "symbol": "circle-open", "line_width": 3},
            ),
        ]
    )
    figure.add_hline(y=result.score_fp32, line_dash="dot", line_color=BESIDE, annotation_text="FP32")
    grid = {"gridcolor": "rgba(134, 142, 150, 0.3)", "zeroline": False, "automargin": True}
    figure.update_layout(
        xaxis={"type": "log", "title": "expected milliseconds" if in_ms else "Bit-Operations", **grid},
        yaxis={"title": result.score_name, **grid},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "color": BESIDE},
        legend={"orientation": "h", "y": 1.12},
        margin={"l": 40, "r": 20, "t": 20, "b": 40},
    )
    return figure
