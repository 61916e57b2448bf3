"""Chart of the search over its epochs."""

from typing import Any

from sbs_deploy.report.charts import ACTIVATIONS, NEUTRAL, WARN, WEIGHTS, layout
from sbs_deploy.report.history import SearchHistory

TICKED = 10
"""Most epochs for which each epoch has a tick."""


def search_chart(history: SearchHistory) -> Any:
    """Charts of loss, lambda, reduction and gate flips, stacked; the epoch of the kept plan is marked."""
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
