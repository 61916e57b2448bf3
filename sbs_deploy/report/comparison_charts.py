"""Pareto fronts of several runs: accuracy against what it costs."""

import html
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from sbs_deploy.measure import units
from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WEIGHTS, layout
from sbs_deploy.report.comparison import Measured, Point, Setting
from sbs_deploy.report.labels import placed
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
    everyone = [(point, x, y, True) for *_, found in series for point, x, y in found]
    everyone += [(point, x, y, False) for point, x, y in dense]
    ends, ticks = log_ticks([x for _, x, _, _ in everyone])
    # The dense networks of several runs lie on one another: their names are on hover.
    marks = [(math.log10(x), y, point.name if named else "") for point, x, y, named in everyone]
    places = iter(placed(marks, ends))
    figure = go.Figure()
    for name, color, symbol, found in series:
        front = pareto_front([x for _, x, _ in found], [y for _, _, y in found])
        figure.add_scatter(
            x=[found[i][1] for i in front],
            y=[found[i][2] for i in front],
            mode="lines",
            line={"color": color, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
        _marks(figure, name, color, symbol, found, words, list(itertools.islice(places, len(found))))
    _marks(figure, "dense FP32", NEUTRAL, "diamond-open", dense, words, list(places))
    figure.update_layout(**layout("top-1 in %", height=380))
    texts = [words(tick) for tick in ticks]
    figure.update_xaxes(title=title, type="log", range=ends, tickvals=ticks, ticktext=texts, tickangle=0)
    return figure


def _marks(
    figure: Any,
    name: str,
    color: str,
    symbol: str,
    found: Costs,
    words: Callable[[float], str],
    places: Sequence[str | None],
) -> None:
    """Marks, with their names at `places`; what has no place tells its name on hover, as all do."""
    title = html.escape(name)
    figure.add_scatter(
        name=title,
        x=[x for _, x, _ in found],
        y=[y for _, _, y in found],
        text=[html.escape(point.name) if place else "" for (point, _, _), place in zip(found, places, strict=True)],
        textposition=[place or "top center" for place in places],
        cliponaxis=False,
        hovertext=[
            f"<b>{html.escape(point.name)}</b><br>{units.percent(y)}<br>{title}: {words(x)}" for point, x, y in found
        ],
        mode="markers+text" if any(places) else "markers",
        marker={"size": 10, "color": color, "symbol": symbol},
        hovertemplate="%{hovertext}<extra></extra>",
    )
