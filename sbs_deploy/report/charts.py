"""The report's charts as plotly figures. Names from the run are escaped: plotly reads a subset of HTML in text."""

import html
from collections.abc import Sequence
from typing import Any

from sbs_deploy.report.ledger import LayerRow, Ledger

WEIGHTS, ACTIVATIONS, KEPT, PRUNED, WARN = "#4263eb", "#f08c00", "#2f9e44", "#dee2e6", "#e03131"


def bits_chart(layers: Sequence[LayerRow]) -> Any:
    """Weight and activation bits of each layer; a float layer is drawn at 32."""
    import plotly.graph_objects as go

    names = _names(layers)
    figure = go.Figure(
        [
            go.Bar(name="weights", x=names, y=[row.bits_w for row in layers], marker_color=WEIGHTS),
            go.Bar(name="activations", x=names, y=[row.bits_a for row in layers], marker_color=ACTIVATIONS),
        ]
    )
    figure.update_layout(barmode="group", **_layout("bits"))
    figure.update_yaxes(tickvals=sorted({0, *(row.bits_w for row in layers), *(row.bits_a for row in layers)}))
    return figure


def channels_chart(layers: Sequence[LayerRow]) -> Any:
    """Output channels each layer keeps, and those pruned."""
    import plotly.graph_objects as go

    names = _names(layers)
    pruned = [row.size_out - row.kept_out for row in layers]
    figure = go.Figure(
        [
            go.Bar(name="kept", x=names, y=[row.kept_out for row in layers], marker_color=KEPT),
            go.Bar(name="pruned", x=names, y=pruned, marker_color=PRUNED),
        ]
    )
    figure.update_layout(barmode="stack", **_layout("output channels"))
    return figure


def share_chart(layers: Sequence[LayerRow]) -> Any:
    """Share of the plan's BOPs, in percent."""
    import plotly.graph_objects as go

    shares = [100 * row.share for row in layers]
    figure = go.Figure([go.Bar(name="share of BOPs", x=_names(layers), y=shares, marker_color=WEIGHTS)])
    figure.update_layout(showlegend=False, **_layout("% of the plan's BOPs"))
    return figure


def latency_chart(ledger: Ledger) -> Any | None:
    """p50 with p90 as whisker for each artifact and batch that was measured; None if none was."""
    import plotly.graph_objects as go

    rows = [row for row in ledger.bench_rows if row["error"] is None]
    if not rows:
        return None
    figure = go.Figure()
    for batch in sorted({row["batch"] for row in rows}):
        own = [row for row in rows if row["batch"] == batch]
        names = [html.escape(f"{row['label']} · {row['backend']}") for row in own]
        p50 = [row["latency_p50_ms"] for row in own]
        error = {"type": "data", "symmetric": False, "array": [row["p90"] - row["latency_p50_ms"] for row in own]}
        figure.add_bar(
            name=f"batch {batch}", y=names, x=p50, orientation="h", error_x=error, text=[f"{x:.3g} ms" for x in p50]
        )
    figure.update_layout(barmode="group", **_layout(None))
    figure.update_xaxes(title="latency p50 in ms (whisker: p90)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return figure


def _names(layers: Sequence[LayerRow]) -> list[str]:
    return [html.escape(row.name) for row in layers]


def _layout(y_title: str | None) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "height": 320,
        "yaxis_title": y_title,
        "xaxis_automargin": True,
        "yaxis_automargin": True,
        "legend": {"orientation": "h", "y": 1.15},
        "font": {"family": "system-ui, sans-serif"},
    }
