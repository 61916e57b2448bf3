from typing import Any

import pytest

from sbs_deploy.report.history import SearchHistory, search_history
from sbs_deploy.report.history_charts import bits_over_time, blend, kept_over_time, log_ticks, search_chart
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.report.histories import search_rows


def history_of(rows: list[dict[str, Any]], config: dict[str, Any] | None = None) -> SearchHistory:
    config = {"target": "60x", "search": {"metric": "loss"}} if config is None else config
    history = search_history(small_plan(), config, {"search": {"top1": 95.0, "history": rows}})
    assert history is not None
    return history


@pytest.mark.parametrize("metrics", [{}, {"search": {"top1": 95.0}}, {"search": {"top1": 95.0, "history": []}}])
def test_a_run_without_history_has_none(metrics: dict[str, Any]) -> None:
    assert search_history(small_plan(), {"target": "60x"}, metrics) is None


def test_the_plan_is_that_of_the_best_epoch() -> None:
    assert history_of(search_rows()).chosen == 2


def test_the_later_of_equals_was_kept() -> None:
    rows = search_rows()
    rows[3]["val_top1"] = rows[2]["val_top1"]
    assert history_of(rows).chosen == 3


def test_without_validation_the_last_epoch_counts() -> None:
    rows = [{key: value for key, value in row.items() if key != "val_top1"} for row in search_rows()]
    assert history_of(rows).chosen == 3


def test_bits_settled_when_they_last_changed_before_the_plan_was_kept() -> None:
    history = history_of(search_rows())
    assert history.settled_in("bits_w", "conv2") == 2
    assert history.settled_in("bits_a", "conv2") == 3
    assert history.settled_in("bits_w", "conv3") == 1
    assert history.settled_in("kept", "b") == 3
    assert history.settled_in("bits_w", "fc") is None


@pytest.mark.parametrize(
    ("target", "reduction"), [("60x", 60.0), ("none", None), (str(small_plan().cost.bops_fp32 / 4), 4.0), (None, None)]
)
def test_the_target_is_a_reduction(target: str | None, reduction: float | None) -> None:
    found = history_of(search_rows(), {} if target is None else {"target": target}).target
    assert found == (None if reduction is None else pytest.approx(reduction))


@pytest.mark.parametrize(("target", "reduction"), [("2.5ms", 4.0), ("2x", 2.0)])
def test_a_target_in_milliseconds_is_of_the_dense_network(target: str, reduction: float) -> None:
    """The search reached 5 ms, 2x of dense FP32: that takes 10 ms."""
    metrics = {"search": {"history": search_rows()}, "budget": {"unit": "ms", "expected_ms": 5.0, "reduction": 2.0}}
    history = search_history(small_plan(), {"target": target}, metrics)
    assert history is not None and (history.unit, history.target) == ("ms", pytest.approx(reduction))
    assert any(axis.title.text == "faster than FP32" for axis in search_chart(history).select_yaxes())


def test_search_chart_holds_every_series() -> None:
    figure = search_chart(history_of(search_rows())).to_dict()
    series = {trace["name"]: trace for trace in figure["data"]}
    assert list(series["training"]["y"]) == [1.0, 0.9, 0.7, 0.6]
    assert list(series["validation"]["y"]) == [None, None, 0.3, 0.4]
    assert list(series["lambda"]["y"]) == [0.0, 0.5, 0.4, 0.3]
    assert list(series["reduction"]["y"]) == [16.0, 31.5, 60.5, 61.0]
    assert list(series["flips"]["y"]) == [0.0, 5.0, 2.0, 1.0]
    assert list(series["target 60x"]["y"]) == [60.0] * 4
    assert all(list(trace["x"]) == [1, 2, 3, 4] for trace in series.values())
    axes = {series[name]["yaxis"] for name in ("training", "lambda", "reduction", "flips")}
    assert len(axes) == 4
    axis = figure["layout"]["yaxis" + series["reduction"]["yaxis"][1:]]
    assert axis["type"] == "log" and axis["range"] == [1, pytest.approx(2)]
    assert {shape["x0"] for shape in figure["layout"]["shapes"]} == {3}, "the kept epoch is marked"


def test_search_chart_of_a_row_with_gaps() -> None:
    rows = [{key: row[key] for key in ("epoch", "loss")} for row in search_rows()]
    series = {trace.name: list(trace.y) for trace in search_chart(history_of(rows, {})).data}
    assert series["training"] == [1.0, 0.9, 0.7, 0.6]
    assert series["lambda"] == series["reduction"] == [None] * 4 and "target" not in str(list(series))


@pytest.mark.parametrize(
    ("kind", "text"), [("bits_w", [[8, 2, 2, 4], [8, 8, 8, 8]]), ("bits_a", [[8, 8, 4, 4], [8, 8, 8, 8]])]
)
def test_bits_over_time_is_layers_by_epochs(kind: str, text: list[list[int]]) -> None:
    (trace,) = bits_over_time(history_of(search_rows("<i>")), kind).data
    assert list(trace.y) == ["&lt;i&gt;conv2", "&lt;i&gt;conv3"] and list(trace.x) == [1, 2, 3, 4]
    assert [list(row) for row in trace.text] == text
    # Candidates 2, 4, 8: one colour a candidate, however far they are apart.
    assert [list(row) for row in trace.z] == [[(2, 4, 8).index(bits) for bits in row] for row in text]
    colors = dict(trace.colorscale)
    assert len(trace.colorscale) == 6 and len(set(colors.values())) == 3
    assert (trace.zmin, trace.zmax) == (-0.5, 2.5)


def test_kept_over_time_is_groups_by_epochs() -> None:
    (trace,) = kept_over_time(history_of(search_rows())).data
    assert list(trace.y) == ["b (32)"]
    assert [list(row) for row in trace.text] == [[32, 24, 16, 16]]
    assert [list(row) for row in trace.z] == [[100, 75, 50, 50]]


def test_cells_are_labelled_while_there_is_room() -> None:
    few = history_of(search_rows())
    many = history_of([search_rows()[0] | {"epoch": epoch} for epoch in range(31)])
    for history, text, gap, tick in ((few, "%{text}", 1, 1), (many, None, 0, None)):
        figure = bits_over_time(history, "bits_w")
        (trace,) = figure.data
        assert (trace.texttemplate, trace.xgap, figure.layout.xaxis.dtick) == (text, gap, tick)


def test_what_was_not_searched_has_no_chart() -> None:
    history = history_of([row | {"bits_w": {}, "bits_a": {}, "kept": {}} for row in search_rows()])
    assert bits_over_time(history, "bits_w") is bits_over_time(history, "bits_a") is kept_over_time(history) is None


def test_log_ticks_enclose_the_values() -> None:
    ticks, span = log_ticks(16.0, 100.1)
    assert ticks == [10, 20, 50, 100, 200] and span == [1, pytest.approx(2.30103)]
    assert log_ticks(2.0, 2.0)[0] == [1, 2, 5]


def test_blend_goes_from_one_colour_to_the_other() -> None:
    assert [blend("#00ff10", "#ff0030", f) for f in (0, 0.5, 1)] == ["#00ff10", "#808020", "#ff0030"]
