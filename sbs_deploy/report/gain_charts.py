"""Charts of predicted and measured gains. Names from the run are escaped: plotly reads HTML in text."""

import html
from collections.abc import Sequence
from typing import Any

from sbs_deploy.measure import units
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.measure.ledger.verdict import MEANINGS, LayerEntry, Verdict
from sbs_deploy.report.charts import ACTIVATIONS, KEPT, NEUTRAL, WARN, WEIGHTS, layout
from sbs_deploy.report.codes import Histogram
from sbs_deploy.report.summary import Summary
from sbs_train.contract.plan import Plan

COLORS: dict[Verdict, str] = {
    "paid off": KEPT,
    "2/4 bit executed as 8 bit": WEIGHTS,
    "partly paid off": "#15aabf",
    "reformat or requantization": ACTIVATIONS,
    "unaligned channels": "#ae3ec9",
    "depthwise": "#d6336c",
    "memory-bound": "#a9812f",
    "not faster": WARN,
    "left in float": NEUTRAL,
    "not timed": NEUTRAL,
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "pentagon", "hexagon", "x", "cross", "hourglass")
"""Symbols of the verdicts, which also differ in colour."""


def bops_waterfall(plan: Plan) -> Any:
    """Bit-Operations from dense FP32 to the plan on paper."""
    dense, slim, deployable, paper = plan.cost.bops_fp32, plan.slim_bops(), plan.deployable_bops(), plan.cost.bops
    steps = [
        ("dense FP32", dense, True),
        ("pruning", slim - dense, False),
        ("8-bit engine", deployable - slim, False),
        ("as executed", deployable, True),
        ("below 8 bits", paper - deployable, False),
        ("on paper", paper, True),
    ]
    return _waterfall(steps, "BOPs of one image", [units.si(abs(value)) for _, value, _ in steps])


def latency_waterfall(summary: Summary) -> Any | None:
    """Milliseconds from dense FP32 to the compressed engine; None if one of them was not measured."""
    if summary.engine is None or summary.dense is None:
        return None
    dense, end = summary.dense.latency_p50_ms, summary.engine.latency_p50_ms
    steps = [("dense FP32", dense, True)]
    if summary.slim is not None:
        slim = summary.slim.latency_p50_ms
        half = " and FP16" if summary.slim.precision == "fp16" else ""
        steps += [(f"pruning{half}", slim - dense, False), ("quantization", end - slim, False)]
    else:
        steps += [("pruning and quantization", end - dense, False)]
    steps += [(html.escape(summary.engine.label.upper()), end, True)]
    return _waterfall(steps, "p50 in ms", [units.number(abs(value)) for _, value, _ in steps])


def _waterfall(steps: Sequence[tuple[str, float, bool]], title: str, text: Sequence[str]) -> Any:
    """Waterfall chart of (name, value, whether it is a total), labelled on top of the bars."""
    import plotly.graph_objects as go

    signs = ["" if whole or not value else "−" if value < 0 else "+" for _, value, whole in steps]
    labels = [sign + one for sign, one in zip(signs, text, strict=True)]
    names, tops, level = [name for name, _, _ in steps], [], 0.0
    for _, value, whole in steps:
        after = value if whole else level + value
        tops.append(after if whole else max(level, after))
        level = after
    figure = go.Figure(
        go.Waterfall(
            x=names,
            y=[value for _, value, _ in steps],
            measure=["absolute" if whole else "relative" for _, _, whole in steps],
            customdata=labels,
            increasing_marker_color=WARN,
            decreasing_marker_color=KEPT,
            totals_marker_color=WEIGHTS,
            connector={"line": {"color": NEUTRAL, "width": 1}},
            hovertemplate="%{x}: %{customdata}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=names,
        y=tops,
        text=labels,
        mode="text",
        textposition="top center",
        textfont_size=11,
        hoverinfo="skip",
        cliponaxis=False,
    )
    figure.update_layout(**layout(title, height=320))
    figure.update_layout(showlegend=False)
    figure.update_yaxes(range=[0, 1.12 * max(tops)], exponentformat="SI")
    return figure


def scatter_chart(timed: LayerLedger, ledger: str) -> Any | None:
    """Predicted against measured, one mark per layer; `ledger` is paper or deployable. None without layer times."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for verdict, symbol in zip(MEANINGS, SYMBOLS, strict=True):
        own = [entry for entry in timed.entries if entry.verdict == verdict and entry.ms]
        if not own:
            continue
        figure.add_scatter(
            name=verdict,
            x=[entry.bops_paper if ledger == "paper" else entry.bops_deployable for entry in own],
            y=[entry.ms for entry in own],
            text=[_hover(entry) for entry in own],
            mode="markers",
            marker={"size": 9, "color": COLORS[verdict], "symbol": symbol, "opacity": 0.8},
            hovertemplate="%{text}<extra></extra>",
        )
    if not figure.data:
        return None
    figure.update_layout(**layout("measured, ms", height=380))
    figure.update_xaxes(
        type="log", title="BOPs on paper" if ledger == "paper" else "BOPs as executed", exponentformat="SI", dtick=1
    )
    figure.update_yaxes(type="log")
    return figure


def _hover(entry: LayerEntry) -> str:
    lines = [
        f"<b>{html.escape(entry.name)}</b>",
        f"{entry.bits_w}/{entry.bits_a} bits, executed as {entry.executed_w}/{entry.executed_a}",
        f"{units.milliseconds(entry.ms)}, in FP32 {units.milliseconds(entry.fp32_ms)}",
        f"BOPs {units.si(entry.bops_paper)}, as executed {units.si(entry.bops_deployable)}",
        entry.verdict,
    ]
    return "<br>".join(lines)


def codes_chart(histograms: Sequence[Histogram]) -> Any | None:
    """One trace per histogram, of which the page shows one at a time; None without histograms."""
    import plotly.graph_objects as go

    if not histograms:
        return None
    figure = go.Figure(
        [
            go.Bar(
                name=html.escape(histogram.title),
                x=list(codes),
                y=[100 * histogram.counts.get(code, 0) / histogram.weights for code in codes],
                marker={"color": WEIGHTS, "line_width": 0},
                hovertemplate="code %{x}: %{y:.2f} %<extra></extra>",
                visible=not i,
            )
            for i, (histogram, codes) in enumerate(
                (one, range(min(one.counts), max(one.counts) + 1)) for one in histograms
            )
        ]
    )
    figure.update_layout(**layout("% of the weights", height=300))
    figure.update_layout(showlegend=False)
    figure.update_layout(bargap=0.05)
    figure.update_xaxes(title="integer code", type="category")  # no ticks between integers
    return figure
