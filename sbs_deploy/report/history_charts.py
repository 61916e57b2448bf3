"""Charts of the search over its epochs. Names from the run are escaped, as in `charts.py`."""

import html
import math
from collections.abc import Sequence
from typing import Any

from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WARN, WEIGHTS, layout
from sbs_deploy.report.history import SearchHistory

PALE = {WEIGHTS: "#dbe4ff", ACTIVATIONS: "#fff3bf", KEPT: "#d3f9d8"}
"""The coarse end of each colour's scale."""
TICKED, LABELLED = 10, 30
"""Up to which number of epochs each one has a tick, and each cell of a heat map its number in it."""


def search_chart(history: SearchHistory) -> Any:
    """Loss, lambda, reduction and gate flips, one below the other."""
    from plotly.subplots import make_subplots

    epochs = history.epochs
    reduction = "reduction" if history.unit == "BOPs" else "faster than FP32"
    titles = ("loss", "lambda", reduction, "gate flips")
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    lines = [
        ("training", "loss", 1, WEIGHTS),
        ("validation", "val_loss", 1, ACTIVATIONS),
        ("lambda", "lambda", 2, WEIGHTS),
        ("reduction", "reduction", 3, WEIGHTS),
    ]
    for name, key, row, color in lines:
        figure.add_scatter(
            name=name, x=epochs, y=history.series(key), mode="lines+markers", marker_color=color, row=row, col=1
        )
    flips = history.series("flips")
    figure.add_bar(name="flips", x=epochs, y=flips, marker={"color": WEIGHTS, "line_width": 0}, row=4, col=1)
    for trace in figure.data[2:]:
        trace.showlegend = False
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
    for row, title in enumerate(titles, 1):
        figure.update_yaxes(title=title, rangemode="tozero" if row in (2, 4) else "normal", row=row, col=1)
    reductions = [value for value in (*history.series("reduction"), history.target) if value is not None]
    if reductions:
        ticks, span = log_ticks(min(reductions), max(reductions))
        figure.update_yaxes(
            type="log", tickvals=ticks, ticktext=[f"{tick:g}x" for tick in ticks], range=span, row=3, col=1
        )
    figure.add_vline(epochs[history.chosen], line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_xaxes(**_epoch_axis(epochs))
    figure.update_xaxes(title="epoch", row=4, col=1)
    return figure


def bits_over_time(history: SearchHistory, kind: str) -> Any | None:
    """A heat map of layers by epochs; `kind` is `bits_w` or `bits_a`. None where no bits were searched."""
    bits = history.over_time(kind)
    if not bits:
        return None
    color, candidates = (WEIGHTS, history.bits_weights) if kind == "bits_w" else (ACTIVATIONS, history.bits_activations)
    levels = sorted({*candidates, *(value for row in bits.values() for value in row if value is not None)})
    z = [[None if value is None else levels.index(value) for value in row] for row in bits.values()]
    steps = [blend(PALE[color], color, index / max(1, len(levels) - 1)) for index in range(len(levels))]
    scale = [(end / len(levels), step) for index, step in enumerate(steps) for end in (index, index + 1)]
    bar = {"tickvals": list(range(len(levels))), "ticktext": [f"{level} bits" for level in levels]}
    return _heat_map(
        history,
        list(bits),
        z,
        list(bits.values()),
        hover="%{y}: %{text} bits in epoch %{x}<extra></extra>",
        colorscale=scale,
        zmin=-0.5,
        zmax=len(levels) - 0.5,
        colorbar=bar,
    )


def kept_over_time(history: SearchHistory) -> Any | None:
    """A heat map of groups by epochs: the part of their channels that remains. None where nothing was pruned."""
    kept = history.over_time("kept")
    if not kept:
        return None
    z = [[None if value is None else 100 * value / history.sizes[name] for value in row] for name, row in kept.items()]
    return _heat_map(
        history,
        [f"{name} ({history.sizes[name]})" for name in kept],
        z,
        list(kept.values()),
        hover="%{y}: %{text} channels, %{z:.0f} %, in epoch %{x}<extra></extra>",
        colorscale=[(0.0, PALE[KEPT]), (1.0, KEPT)],
        zmin=0,
        zmax=100,
        colorbar={"ticksuffix": " %"},
    )


def log_ticks(least: float, most: float) -> tuple[list[float], list[float]]:
    """Ticks at 1, 2 and 5 times powers of ten around the values, and the range of the axis in decades.

    >>> log_ticks(16.0, 100.1)
    ([10.0, 20.0, 50.0, 100.0, 200.0], [1.0, 2.3010299956639813])
    """
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max((tick for tick in ticks if tick < least), default=ticks[0])
    above = min((tick for tick in ticks if tick > most), default=ticks[-1])
    return [tick for tick in ticks if below <= tick <= above], [math.log10(below), math.log10(above)]


def blend(low: str, high: str, fraction: float) -> str:
    """A colour between two.

    >>> blend("#000000", "#ff8040", 0.5)
    '#804020'
    """
    ends = ([int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (low, high))
    return "#" + "".join(f"{round(a + fraction * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def _heat_map(
    history: SearchHistory,
    names: Sequence[str],
    z: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[int | None]],
    *,
    hover: str,
    colorbar: dict[str, Any],
    **kwargs: Any,
) -> Any:
    import plotly.graph_objects as go

    epochs = history.epochs
    labelled = len(epochs) <= LABELLED
    row_px = max(12, min(22, 1600 // len(names)))
    bar = {"y": 1 + 20 / (row_px * len(names))}  # above the mark of the kept epoch
    figure = go.Figure(
        go.Heatmap(
            x=epochs,
            y=[html.escape(name) for name in names],
            z=z,
            text=text,
            texttemplate="%{text}" if labelled else None,
            hovertemplate=hover,
            xgap=1 if labelled else 0,
            ygap=1,
            colorbar={"orientation": "h", "yanchor": "bottom", "ypad": 0, "thickness": 10, **bar, **colorbar},
            **kwargs,
        )
    )
    figure.update_layout(**layout(None, height=120 + row_px * len(names)))
    figure.update_xaxes(title="epoch", showgrid=False, **_epoch_axis(epochs))
    figure.update_yaxes(autorange="reversed", dtick=1, showgrid=False, tickfont_size=min(12, row_px - 2))
    figure.add_annotation(
        text="▼ kept", x=epochs[history.chosen], y=1, yref="paper", yanchor="bottom", showarrow=False, font_size=11
    )
    return figure


def _epoch_axis(epochs: Sequence[int]) -> dict[str, Any]:
    return {"dtick": 1} if len(epochs) <= TICKED else {}
