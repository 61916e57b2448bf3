from pathlib import Path

import pytest

from sbs_deploy.report.charts import latency_chart
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.validation import validation_rows
from sbs_deploy.validate.run import validation_sources
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.histories import record_history, search_rows
from tests.sbs_deploy.report.runs import write_bench
from tests.sbs_deploy.report.test_report import Page


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", layer_prefix="<b>layer</b>.")


def words(run: RunDir) -> str:
    """Of the section that explains the plan."""
    text = page_from_ledger(make_ledger(run))
    return " ".join(text[text.index("Why this plan") : text.index("Why these filters")].split())


def test_page_of_a_search_in_milliseconds_speaks_of_them(run: RunDir) -> None:
    record_history(run, search_rows("<b>layer</b>."), target="2x")
    assert "the price of the Bit-Operations (BOPs) that it costs" in words(run)
    metrics = rundir.read_json(run.metrics)
    budget = {"unit": "ms", "expected_ms": 5.0, "reduction": 2.0, "reached": True, "max_bops": None}
    rundir.write_json(run.metrics, metrics | {"budget": budget})
    found = words(run)
    assert "the price of the expected milliseconds that it costs" in found
    assert "all milliseconds of the network together" in found and "adds 1 % to the milliseconds" in found
    assert "where the time that they take makes them dear" in found and "all BOPs" not in found
    assert "share of BOPs" in found and "it is no share of the time" in found, "the column holds what it says"
    rundir.write_json(run.metrics, metrics | {"budget": budget | {"max_bops": "5G"}})
    assert "the price of the expected milliseconds and the Bit-Operations (BOPs) that it costs" in words(run)
    record_history(run, search_rows("<b>layer</b>."), metric="error", target="2x")
    assert "weight of log(expected milliseconds) in the loss" in words(run)


def test_validation_is_in_words(run: RunDir) -> None:
    found = {"passed": True, "images": 360, "codes_equal": True, "max_abs_diff": 0.0123456, "first_divergence": None}
    rundir.write_json(run.validation, found | {"integer": {}, "engines": []})
    rundir.write_manifest(run.validation, validation_sources(run))
    cells = Page(page_from_ledger(make_ledger(run))).cells
    start = cells.index("images")
    assert cells[start : start + 6] == ["images", "360", "codes equal", "yes", "max abs diff", "0.012346"]
    assert not {"codes_equal", "True", "None", "[]", "first divergence", "engines"} & set(cells)
    engine = {"engine": "model.int8.tensorrt.engine", "passed": False, "device": "L4", "first_divergence": "conv2"}
    unchecked = {"engine": "model.fp8.tensorrt.engine", "passed": None, "note": "no GPU"}
    rows = validation_rows({"codes_equal": False, "engines": [engine, unchecked]})
    assert rows == [
        ("codes equal", "no"),
        ("engine model.int8.tensorrt.engine", "failed on L4, first diverging layer conv2"),
        ("engine model.fp8.tensorrt.engine", "not checked (no GPU)"),
    ]


def test_what_did_not_hold_is_on_the_page(run: RunDir) -> None:
    identity = {"error": {"slim": 0.0, "trt": None}, "limit": 1e-4, "quantizers_equal": False}
    found = {"passed": False, "identity": identity, "failures": ["<b>quantizers</b>", "two"], "engines": []}
    rundir.write_json(run.validation, found)
    rundir.write_manifest(run.validation, validation_sources(run))
    cells = Page(page_from_ledger(make_ledger(run))).cells
    start = cells.index("error without quantizers")
    assert cells[start + 1].startswith("slim 0, trt not a number of the float") and "0.0001" in cells[start + 1]
    assert cells[start + 2 : start + 8] == ["quantizers equal", "no", "failure", "<b>quantizers</b>", "failure", "two"]
    rundir.write_json(run.validation, found | {"identity": identity | {"limit": "x"}})
    with pytest.raises(SbsError, match=r"validation\.json: identity\.limit"):
        make_ledger(run)


def test_latencies_stand_outside_their_bars(run: RunDir) -> None:
    """Behind the whisker, in the page's own colour, at a size that fits no bar."""
    write_bench(run)
    bars, numbers = latency_chart(make_ledger(run)).data
    assert bars.text is None and list(numbers.text) == ["10 ms", "8 ms", "5 ms"]
    assert [base + x for base, x in zip(numbers.base, numbers.x, strict=True)] == pytest.approx([11.0, 8.8, 5.5])
    assert (numbers.textposition, numbers.constraintext, numbers.textfont.size) == ("outside", "none", 12)
    assert numbers.textfont.color is None and numbers.offsetgroup == bars.offsetgroup and not numbers.showlegend
