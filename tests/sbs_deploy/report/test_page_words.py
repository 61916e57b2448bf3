from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.report.charts import latency_chart
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.validation import validation_rows
from sbs_deploy.validate.run import validation_sources
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import CheckedEngine, Validation
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.histories import record_history, search_rows
from tests.sbs_deploy.report.runs import write_bench
from tests.sbs_deploy.report.test_report import Page


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", layer_prefix="<b>layer</b>.")


def test_page_of_a_search_in_milliseconds_speaks_of_them(run: RunDir) -> None:
    record_history(run, search_rows("<b>layer</b>."), target="2x")
    assert "their part of all BOPs" in page_from_ledger(make_ledger(run))
    budget = {"unit": "ms", "expected_ms": 5.0, "reduction": 2.0, "reached": True, "max_bops": None}
    rundir.write_json(run.metrics, rundir.read_json(run.metrics) | {"budget": budget})
    assert "their part of all ms" in page_from_ledger(make_ledger(run))


def test_validation_is_in_words(run: RunDir) -> None:
    found = {"passed": True, "samples": 360, "codes_equal": True, "max_abs_diff": 0.0123456, "first_divergence": None}
    rundir.write_json(run.validation, found | {"engines": []})
    rundir.write_manifest(run.validation, validation_sources(run))
    cells = Page(page_from_ledger(make_ledger(run))).cells
    start = cells.index("samples")
    assert cells[start : start + 6] == ["samples", "360", "codes equal", "yes", "max abs diff", "0.012346"]
    assert not {"codes_equal", "True", "None", "[]", "first divergence", "engines"} & set(cells)
    engine: dict[str, Any] = {
        "engine": "model.int8.tensorrt.engine",
        "passed": False,
        "device": "L4",
        "first_divergence": "conv2",
    }
    unchecked: dict[str, Any] = {"engine": "model.fp8.tensorrt.engine", "passed": None, "note": "no GPU"}
    engines = tuple(CheckedEngine(**one) for one in (engine, unchecked))
    rows = validation_rows(Validation(passed=False, codes_equal=False, engines=engines))
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
    bars, numbers = latency_chart(make_ledger(run).bench.rows).data
    assert bars.text is None and list(numbers.text) == ["10 ms", "8 ms", "5 ms"]
    assert [base + x for base, x in zip(numbers.base, numbers.x, strict=True)] == pytest.approx([11.0, 8.8, 5.5])
    assert (numbers.textposition, numbers.constraintext, numbers.textfont.size) == ("outside", "none", 12)
    assert numbers.textfont.color is None and numbers.offsetgroup == bars.offsetgroup and not numbers.showlegend
