"""Pareto fronts of several runs: accuracy against what it costs."""

import html
from collections.abc import Sequence
from typing import Any

from sbs_deploy.report import units
from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WEIGHTS, layout
from sbs_deploy.report.comparison import Point, pareto

Costs = Sequence[tuple[Point, float, float]]
"""(run, cost, top-1)."""


def bops_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against Bit-Operations, on paper and as executed."""
    return _chart(
        [
            ("on paper", WEIGHTS, "circle", _known(points, "bops_paper")),
            ("as executed", ACTIVATIONS, "square", _known(points, "bops_deployable")),
        ],
        _known(points, "bops_fp32", "top1_fp32"),
        "BOPs of one image",
        "",
    )


def latency_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against latency, a front for each engine, device and batch size."""
    colors = (WEIGHTS, ACTIVATIONS, KEPT, "#ae3ec9", "#15aabf", "#d6336c")
    found = _known(points, "latency_ms")
    settings: dict[tuple[Any, ...], list[tuple[Point, float, float]]] = {}
    for one in found:
        settings.setdefault((one[0].backend, one[0].device, one[0].batch, one[0].machine), []).append(one)
    series = [
        (f"{backend}, {device}, batch {batch}", colors[i % len(colors)], "circle", own)
        for i, ((backend, device, batch, _), own) in enumerate(settings.items())
    ]
    return _chart(series, _known(points, "latency_fp32_ms", "top1_fp32"), "latency p50", "s", factor=1e-3)


def size_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against the weights' bytes."""
    series = [("weights, packed", KEPT, "circle", _known(points, "size_bytes"))]
    return _chart(series, _known(points, "size_fp32_bytes", "top1_fp32"), "size", "B")


def _known(points: Sequence[Point], cost: str, gain: str = "top1") -> list[tuple[Point, float, float]]:
    values = [(point, getattr(point, cost), getattr(point, gain)) for point in points]
    return [(point, x, y) for point, x, y in values if x is not None and y is not None]


def _chart(
    series: Sequence[tuple[str, str, str, Costs]], dense: Costs, title: str, unit: str, factor: float = 1.0
) -> Any | None:
    """Runs as marks, the front as steps between those that nothing beats; None where there is nothing to show."""
    import plotly.graph_objects as go

    if not any(found for _, _, _, found in series):
        return None
    figure = go.Figure()
    for name, color, symbol, found in series:
        front = pareto([x for _, x, _ in found], [y for _, _, y in found])
        figure.add_scatter(
            x=[found[i][1] * factor for i in front],
            y=[found[i][2] for i in front],
            mode="lines",
            line={"color": color, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
        _marks(figure, html.escape(name), color, symbol, found, unit, factor)
    _marks(figure, "dense FP32", NEUTRAL, "diamond-open", dense, unit, factor)
    figure.update_layout(**layout("top-1 in %", height=380))
    costs = [x for found in (*(one for *_, one in series), dense) for _, x, _ in found]
    ticks = {"dtick": "D2"} if max(costs) > 5 * min(costs) else {"nticks": 5}  # at 1, 2 and 5, or as they come
    figure.update_xaxes(title=title, type="log", exponentformat="SI", ticksuffix=unit, tickangle=0, **ticks)
    return figure


def _marks(figure: Any, name: str, color: str, symbol: str, found: Costs, unit: str, factor: float) -> None:
    figure.add_scatter(
        name=name,
        x=[x * factor for _, x, _ in found],
        y=[y for _, _, y in found],
        text=[
            f"<b>{html.escape(point.name)}</b><br>{units.percent(y)}<br>{name}: "
            + (units.milliseconds(x) if unit == "s" else units.si(x, unit))
            for point, x, y in found
        ],
        mode="markers",
        marker={"size": 10, "color": color, "symbol": symbol},
        hovertemplate="%{text}<extra></extra>",
    )
