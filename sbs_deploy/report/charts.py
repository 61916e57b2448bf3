"""The report's charts as plotly figures. Names from the run are escaped: plotly reads a subset of HTML in text."""

import html
import itertools
from collections.abc import Sequence
from typing import Any

from sbs_deploy.report.history import SearchHistory
from sbs_train.contract.plan import Plan
from sbs_train.contract.results import Row, TimedRow

WEIGHTS, ACTIVATIONS, KEPT, WARN = "#4263eb", "#f08c00", "#2f9e44", "#e03131"
NEUTRAL = "#868e96"
TICKED = 10
"""Number of epochs up to which each one has a tick."""
PRUNED = "rgba(134, 142, 150, 0.3)"
"""Transparent grey, visible on light and dark pages."""


def plan_chart(plan: Plan) -> Any:
    """Chart of all layers: bits (32 for float), output channels, share of the plan's BOPs."""
    import plotly.graph_objects as go

    layers = plan.layers
    names = [html.escape(layer.name) for layer in layers]
    kept = [layer.kept_out for layer in layers]
    pruned = [plan.group(layer.group_out).size - layer.kept_out for layer in layers]
    shares = [100 * plan.cost.shares[layer.name] for layer in layers]

    def bar(name: str, y: list[Any], color: str, axis: str, **kwargs: Any) -> Any:
        marker = {"color": color, "line_width": 0}
        return go.Bar(**{"name": name, "x": names, "y": y, "marker": marker, "yaxis": axis, "width": 0.8, **kwargs})

    figure = go.Figure(
        [
            bar("weight bits", [layer.bits_w for layer in layers], WEIGHTS, "y", offset=-0.4, width=0.4),
            bar("activation bits", [layer.bits_a for layer in layers], ACTIVATIONS, "y", offset=0, width=0.4),
            bar("channels kept", kept, KEPT, "y2"),
            bar("channels pruned", pruned, PRUNED, "y2", base=kept),
            bar("share of BOPs", shares, NEUTRAL, "y3", hovertemplate="%{y:.2f} %"),
        ]
    )
    figure.update_layout(barmode="overlay", hovermode="x", **layout("bits", height=640))
    figure.update_layout(
        yaxis_domain=[0.7, 1.0],
        yaxis2={"domain": [0.35, 0.63], "title": "output channels", "automargin": True},
        yaxis3={"domain": [0.0, 0.28], "title": "% of BOPs", "automargin": True},
        xaxis_anchor="y3",
    )
    bits = {0, *(bits for layer in layers for bits in (layer.bits_w, layer.bits_a))}
    figure.update_layout(yaxis_tickvals=sorted(bits))
    return figure


def latency_chart(bench_rows: Sequence[Row]) -> Any | None:
    """Chart of p50, with p90 as whisker, for each measured artifact and batch size; None without measurements."""
    import plotly.graph_objects as go

    rows = [row for row in bench_rows if isinstance(row, TimedRow)]
    if not rows:
        return None
    figure = go.Figure()
    batches = sorted({row.batch for row in rows})
    for batch, color in zip(batches, itertools.cycle((WEIGHTS, ACTIVATIONS, KEPT, NEUTRAL))):
        own = [row for row in rows if row.batch == batch]
        names = [html.escape(f"{row.label} · {row.backend}") for row in own]
        p50 = [row.latency_p50_ms for row in own]
        above = [max(0.0, row.p90 - row.latency_p50_ms) for row in own]
        error = {"type": "data", "symmetric": False, "array": above, "color": NEUTRAL}
        group = {"y": names, "orientation": "h", "offsetgroup": str(batch)}
        figure.add_bar(
            name=f"batch {batch}",
            x=p50,
            error_x=error,
            marker={"color": color, "line_width": 0},
            **group,
        )
        # An invisible bar up to the whisker's end carries the number, in the page's text colour.
        figure.add_bar(
            base=p50,
            x=above,
            text=[f"{x:.3g} ms" for x in p50],
            textposition="outside",
            textangle=0,
            textfont_size=12,
            constraintext="none",
            cliponaxis=False,
            marker={"color": "rgba(0, 0, 0, 0)", "line_width": 0},
            hoverinfo="skip",
            showlegend=False,
            **group,
        )
    figure.update_layout(barmode="group", **layout(None, height=max(320, 110 + 24 * len(rows))))
    room = 1.3 * max(max(row.p90, row.latency_p50_ms) for row in rows)
    figure.update_xaxes(title="p50 in ms, whisker to p90", range=[0, room])
    figure.update_yaxes(autorange="reversed")
    return figure


def search_chart(history: SearchHistory) -> Any:
    """Loss, lambda, reduction and gate flips, one below the other; the epoch whose plan was kept is marked."""
    from plotly.subplots import make_subplots

    rows, epochs = history.rows, [row.epoch + 1 for row in history.rows]
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    lines = [
        ("training", [row.loss for row in rows], 1, WEIGHTS),
        ("validation", [row.val_loss for row in rows], 1, ACTIVATIONS),
        ("lambda", [row.lambda_ for row in rows], 2, WEIGHTS),
        ("reduction", [row.reduction for row in rows], 3, WEIGHTS),
    ]
    for name, values, place, color in lines:
        figure.add_scatter(
            name=name,
            x=epochs,
            y=values,
            mode="lines+markers",
            marker_color=color,
            showlegend=place == 1,
            row=place,
            col=1,
        )
    flips = [row.flips for row in rows]
    marker = {"color": WEIGHTS, "line_width": 0}
    figure.add_bar(name="flips", x=epochs, y=flips, marker=marker, showlegend=False, row=4, col=1)
    if history.target is not None:
        figure.add_scatter(
            name=f"target {history.target:.4g}x",
            x=epochs,
            y=[history.target] * len(epochs),
            mode="lines",
            line={"color": WARN, "dash": "dash"},
            row=3,
            col=1,
        )
    figure.update_layout(**layout(None, height=640))
    reduction = "reduction" if history.unit == "BOPs" else "faster than FP32"
    for place, title in enumerate(("loss", "lambda", reduction, "gate flips"), 1):
        figure.update_yaxes(title=title, rangemode="tozero" if place in (2, 4) else "normal", row=place, col=1)
    figure.update_yaxes(type="log", ticksuffix="x", row=3, col=1)
    figure.add_vline(history.chosen.epoch + 1, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_xaxes(dtick=1 if len(epochs) <= TICKED else None)
    figure.update_xaxes(title="epoch", row=4, col=1)
    return figure


def layout(y_title: str | None, height: int = 320) -> dict[str, Any]:
    """Layout of all charts."""
    return {
        "template": "plotly_white",
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "height": height,
        "yaxis_title": y_title,
        "xaxis_automargin": True,
        "yaxis_automargin": True,
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif"},
    }
