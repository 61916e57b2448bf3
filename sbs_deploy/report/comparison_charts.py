"""Pareto fronts of several runs: accuracy against cost."""

import html
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.measure import units
from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WEIGHTS, layout
from sbs_deploy.report.comparison import Measured, Point, Setting
from sbs_train.contract.front import pareto_front

Runs = Sequence[tuple[Point, float, float]]
"""(run, cost, score)."""
COLORS = (WEIGHTS, ACTIVATIONS, KEPT, "#ae3ec9", "#15aabf", "#d6336c")


@dataclass(frozen=True)
class Series:
    """Runs of one setting, which can be compared."""

    name: str
    color: str
    symbol: str
    runs: Runs


def bops_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against Bit-Operations, on paper and as executed."""
    series = [
        Series("on paper", WEIGHTS, "circle", _known(points, "bops_paper")),
        Series("as executed", ACTIVATIONS, "square", _known(points, "bops_deployable")),
    ]
    return _chart(series, _known(points, "bops_fp32", "score_fp32"), "BOPs of one image", units.si)


def latency_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against latency: a front for each engine, device and batch size, of all runs with such measurements."""
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
        runs = [(point, one.latency_ms, one.score) for point, one in own if one.score is not None]
        series.append(Series(name, color, "circle", runs))
        dense += [
            (point, one.latency_fp32_ms, point.score_fp32)
            for point, one in own
            if one.latency_fp32_ms is not None and point.score_fp32 is not None
        ]
    return _chart(series, dense, "latency p50 in ms", units.milliseconds)


def size_front(points: Sequence[Point]) -> Any | None:
    """Accuracy against the weights' bytes."""
    series = [Series("weights, packed", KEPT, "circle", _known(points, "size_bytes"))]
    dense = _known(points, "size_fp32_bytes", "score_fp32")
    return _chart(series, dense, "bytes", lambda value: units.si(value, "B"))


def _title(setting: Setting) -> str:
    return f"{setting.backend}, {setting.device}, batch {setting.batch}"


def _known(points: Sequence[Point], cost: str, gain: str = "score") -> list[tuple[Point, float, float]]:
    values = [(point, getattr(point, cost), getattr(point, gain)) for point in points]
    return [(point, x, y) for point, x, y in values if x is not None and y is not None]


def _chart(series: Sequence[Series], dense: Runs, title: str, words: Callable[[float], str]) -> Any | None:
    """Chart of runs as marks and of the front as steps; None without runs.

    Args:
        words: formats a cost as text.
    """
    import plotly.graph_objects as go

    if not any(one.runs for one in series):
        return None
    figure = go.Figure()
    names = sorted({point.score_name for one in series for point, *_ in one.runs} - {""})
    for one in series:
        front = [one.runs[i] for i in pareto_front([x for _, x, _ in one.runs], [y for *_, y in one.runs])]
        figure.add_scatter(
            x=[x for _, x, _ in front],
            y=[y for *_, y in front],
            mode="lines",
            line={"color": one.color, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
        _add_marks(figure, one, words, named=True)
    # Dense networks of several runs overlap, so their names show on hover.
    _add_marks(figure, Series("dense FP32", NEUTRAL, "diamond-open", dense), words, named=False)
    figure.update_layout(**layout(" or ".join(names) or "score", height=380))
    figure.update_xaxes(title=title, type="log", exponentformat="SI", nticks=5, tickangle=0)
    return figure


def _add_marks(figure: Any, series: Series, words: Callable[[float], str], *, named: bool) -> None:
    title = html.escape(series.name)
    names = [html.escape(point.name) for point, *_ in series.runs]
    hovers = [f"{html.escape(units.score(y, point.score_name))}<br>{title}: {words(x)}" for point, x, y in series.runs]
    figure.add_scatter(
        name=title,
        x=[x for _, x, _ in series.runs],
        y=[y for *_, y in series.runs],
        text=names,
        textposition="top center",
        cliponaxis=False,
        hovertext=[f"<b>{name}</b><br>{hover}" for name, hover in zip(names, hovers, strict=True)],
        mode="markers+text" if named else "markers",
        marker={"size": 10, "color": series.color, "symbol": series.symbol},
        hovertemplate="%{hovertext}<extra></extra>",
    )
