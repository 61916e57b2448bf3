"""Pareto fronts of several runs: accuracy against what it costs."""

import html
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from sbs_deploy.report import units
from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WEIGHTS, layout
from sbs_deploy.report.comparison import Measured, Point, Setting
from sbs_deploy.report.ticks import log_ticks
from sbs_train.contract.front import pareto_front

Costs = Sequence[tuple[Point, float, float]]
"""(run, cost, top-1)."""
COLORS = (WEIGHTS, ACTIVATIONS, KEPT, "#ae3ec9", "#15aabf", "#d6336c")


def bops_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against Bit-Operations, on paper and as executed."""
    return _chart(
        [
            ("on paper", WEIGHTS, "circle", _known(points, "bops_paper")),
            ("as executed", ACTIVATIONS, "square", _known(points, "bops_deployable")),
        ],
        _known(points, "bops_fp32", "top1_fp32"),
        "BOPs of one image",
        units.si,
    )


def latency_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against latency: a front for each engine, device and batch size, of all runs that were measured so."""
    found: dict[Setting, list[tuple[Point, Measured]]] = {}
    for point in points:
        for one in point.measured:
            found.setdefault(one.setting, []).append((point, one))
    plain = [_title(setting) for setting in found]
    series, dense = [], []
    for setting, color in zip(found, itertools.cycle(COLORS)):
        name = _title(setting)
        if plain.count(name) > 1:
            name += f", {setting.threads} threads, {setting.machine}"
        own = found[setting]
        costs = [(point, one.latency_ms, one.top1) for point, one in own if one.top1 is not None]
        series.append((name, color, "circle", costs))
        dense += [
            (point, one.latency_fp32_ms, point.top1_fp32)
            for point, one in own
            if one.latency_fp32_ms is not None and point.top1_fp32 is not None
        ]
    return _chart(series, dense, "latency p50", units.milliseconds)


def size_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against the weights' bytes."""
    series = [("weights, packed", KEPT, "circle", _known(points, "size_bytes"))]
    dense = _known(points, "size_fp32_bytes", "top1_fp32")
    return _chart(series, dense, "size", lambda value: units.si(value, "B"))


def _title(setting: Setting) -> str:
    return f"{setting.backend}, {setting.device}, batch {setting.batch}"


def _known(points: Sequence[Point], cost: str, gain: str = "top1") -> list[tuple[Point, float, float]]:
    values = [(point, getattr(point, cost), getattr(point, gain)) for point in points]
    return [(point, x, y) for point, x, y in values if x is not None and y is not None]


def _chart(
    series: Sequence[tuple[str, str, str, Costs]], dense: Costs, title: str, words: Callable[[float], str]
) -> Any | None:
    """Runs as marks with their names, the front as steps between those that nothing beats; None where there is nothing
    to show.

    Args:
        series: (name, color, symbol, runs).
        words: says a cost.
    """
    import plotly.graph_objects as go

    if not any(found for _, _, _, found in series):
        return None
    figure = go.Figure()
    for (name, color, symbol, found), place in zip(series, itertools.cycle(("top center", "bottom center"))):
        front = pareto_front([x for _, x, _ in found], [y for _, _, y in found])
        figure.add_scatter(
            x=[found[i][1] for i in front],
            y=[found[i][2] for i in front],
            mode="lines",
            line={"color": color, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
        _marks(figure, name, color, symbol, found, words, place)
    _marks(figure, "dense FP32", NEUTRAL, "diamond-open", dense, words, None)
    figure.update_layout(**layout("top-1 in %", height=380))
    ends, ticks = log_ticks([x for _, x, _ in (*itertools.chain(*(found for *_, found in series)), *dense)])
    texts = [words(tick) for tick in ticks]
    figure.update_xaxes(title=title, type="log", range=ends, tickvals=ticks, ticktext=texts, tickangle=0)
    return figure


def _marks(
    figure: Any, name: str, color: str, symbol: str, found: Costs, words: Callable[[float], str], place: str | None
) -> None:
    """Marks with their names at `place`; the dense networks of several runs lie on one another: theirs are on hover."""
    title = html.escape(name)
    figure.add_scatter(
        name=title,
        x=[x for _, x, _ in found],
        y=[y for _, _, y in found],
        text=[html.escape(point.name) for point, _, _ in found],
        textposition=place,
        cliponaxis=False,
        hovertext=[
            f"<b>{html.escape(point.name)}</b><br>{units.percent(y)}<br>{title}: {words(x)}" for point, x, y in found
        ],
        mode="markers+text" if place else "markers",
        marker={"size": 10, "color": color, "symbol": symbol},
        hovertemplate="%{hovertext}<extra></extra>",
    )
