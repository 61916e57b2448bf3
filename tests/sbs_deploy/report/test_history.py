import json
from typing import Any

import pytest

from sbs_deploy.report.charts import search_chart
from sbs_deploy.report.history import SearchHistory, search_history
from sbs_train.contract.records import Metrics
from sbs_train.contract.results import Config
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.report.histories import search_rows


def search_of(rows: list[dict[str, Any]], target: str | None = "60x", **budget: Any) -> SearchHistory | None:
    """The history as it is read from metrics.json."""
    text = json.dumps({"search": {"top1": 95.0, "history": rows}, "budget": budget})
    return search_history(small_plan(), Config(target=target), Metrics.model_validate_json(text))


def history_of(rows: list[dict[str, Any]], target: str | None = "60x", **budget: Any) -> SearchHistory:
    history = search_of(rows, target, **budget)
    assert history is not None
    return history


def test_a_run_without_history_has_none() -> None:
    assert search_of([]) is None


def test_the_plan_is_that_of_the_best_epoch() -> None:
    assert history_of(search_rows()).chosen.epoch == 2


def test_the_later_of_equals_was_kept() -> None:
    rows = search_rows()
    rows[3]["val_top1"] = rows[2]["val_top1"]
    assert history_of(rows).chosen.epoch == 3


def test_without_validation_the_last_epoch_counts() -> None:
    rows = [{key: value for key, value in row.items() if key != "val_top1"} for row in search_rows()]
    assert history_of(rows).chosen.epoch == 3


def test_margins_stand_by_the_bits_that_a_gate_opens() -> None:
    history = history_of(search_rows())
    assert history.margins("w", "conv2") == {4: -0.002, 8: -0.01}
    assert history.margins("a", "conv2") == {4: 0.05, 8: -0.04}
    assert history.margins("w", "fc") == {} and history.margin_p("b") == 0.0007 and history.margin_p("a") is None


@pytest.mark.parametrize(
    ("target", "reduction"), [("60x", 60.0), ("none", None), (str(small_plan().cost.bops_fp32 / 4), 4.0), (None, None)]
)
def test_the_target_is_a_reduction(target: str | None, reduction: float | None) -> None:
    found = history_of(search_rows(), target).target
    assert found == (None if reduction is None else pytest.approx(reduction))


@pytest.mark.parametrize(("target", "reduction"), [("2.5ms", 4.0), ("2x", 2.0)])
def test_a_target_in_milliseconds_is_of_the_dense_network(target: str, reduction: float) -> None:
    """The search reached 5 ms, 2x of dense FP32: that takes 10 ms."""
    history = history_of(search_rows(), target, unit="ms", expected_ms=5.0, reduction=2.0)
    assert (history.unit, history.target) == ("ms", pytest.approx(reduction))
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
    assert axis["type"] == "log"
    assert {shape["x0"] for shape in figure["layout"]["shapes"]} == {3}, "the kept epoch is marked"


def test_search_chart_of_a_row_with_gaps() -> None:
    rows = [{key: row[key] for key in ("epoch", "loss")} for row in search_rows()]
    series = {trace.name: list(trace.y) for trace in search_chart(history_of(rows, None)).data}
    assert series["training"] == [1.0, 0.9, 0.7, 0.6]
    assert series["lambda"] == series["reduction"] == [None] * 4 and "target" not in str(list(series))
