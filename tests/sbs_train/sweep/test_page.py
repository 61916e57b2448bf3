"""sweep.html: what the chart says without a mouse, and that it offers to send nothing anywhere."""

import json
import re

from sbs_train.contract.sweep import SweepResult, SweepRun
from sbs_train.sweep.page import front_chart, write_page


def result_of(*rows):
    """Of (target, BOPs, top-1, on the front)."""
    runs = [
        SweepRun(target=t, run=t, reached=True, reduction=20.0, bops=bops, score=top1, on_front=front)
        for t, bops, top1, front in rows
    ]
    return SweepResult(model="resnet20", data="digits", unit="BOPs", score_name="top1", score_fp32=98.0, runs=runs)


RESULT = result_of(("20x", 4e6, 97.0, True), ("40x", 2e6, 96.0, True), ("60x", 3e6, 95.0, False))


def test_points_are_labelled_with_their_targets():
    front, beside, _ = front_chart(RESULT).data
    assert front.mode == "lines+markers+text" and list(front.text) == ["40x", "20x"]
    assert beside.mode == "markers+text" and list(beside.text) == ["60x"]
    assert "top1 95.00, 3 M BOPs" in beside.hovertext[0]


def test_the_page_has_no_button_that_sends_the_chart(tmp_path):
    write_page(RESULT, tmp_path / "sweep.html")
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    call = text[text.rindex("Plotly.newPlot(") :]
    config = json.loads(re.findall(r"\{[^{}]*\"responsive\"[^{}]*\}", call)[-1])
    assert config.pop("plotlyServerURL", "") == "", "newer versions of plotly leave it out where nothing is sent"
    assert config == {"responsive": True, "displayModeBar": False, "showSendToCloud": False}
