from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.report.goal import search_goal
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.markdown import markdown_from_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_train.contract import rundir
from sbs_train.contract.device import save_device
from tests.sbs_deploy.devices import device_of
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.report.runs import measured_run

IN_MS = {"unit": "ms", "reduction": 2.1, "expected_ms": 10 / 2.1, "reached": True, "max_bops": None}
"""Dense FP32 takes 10 ms."""
ROW = {
    "backend": "onnxruntime",
    "device": "cpu of a test",
    "precision": "int8",
    "batch": 1,
    "error": None,
    "latency_p50_ms": 4.8,
    "speedup_vs_fp32": 1.9,
}


def said(target: str | None, budget: dict[str, Any], row: dict[str, Any] | None = None, known: bool = True) -> str:
    device = device_of("onnxruntime", align=4) if known and budget.get("unit") == "ms" else None
    rows = [] if row is None else [ROW | {"precision": "fp32"}, ROW | {"batch": 8}, ROW | row]
    goal = search_goal(small_plan(), {"target": target}, {"budget": budget}, rows, device)
    return "" if goal is None else goal.sentence


@pytest.mark.parametrize(
    ("target", "reached", "sentence"),
    [
        ("60x", True, "Target: 60x fewer Bit-Operations. The plan needs 60.5x fewer: reached."),
        ("90x", False, "Target: 90x fewer Bit-Operations. The plan needs 60.5x fewer: MISSED."),
        ("5M", True, f"Target: at most 5M Bit-Operations ({small_plan().cost.bops_fp32 / 5e6:.0f}x fewer). The"),
    ],
)
def test_a_target_in_bops(target: str, reached: bool, sentence: str) -> None:
    assert said(target, {"unit": "BOPs", "reduction": 60.5, "reached": reached}).startswith(sentence)


@pytest.mark.parametrize(
    ("target", "row", "sentence"),
    [
        ("5ms", {}, "Target: at most 5.00 ms on onnxruntime. Expected 4.76 ms: reached. Measured 4.80 ms: reached."),
        ("5ms", {"latency_p50_ms": 5.5}, "Measured 5.50 ms: MISSED by 10 %."),
        (
            "2x",
            {},
            "Target: 2x the speed of FP32 (5.00 ms) on onnxruntime. Expected 4.76 ms: reached. Measured 4.80 ms, "
            "1.90x the speed of FP32: MISSED by 5.3 %.",
        ),
        ("2x", {"speedup_vs_fp32": None}, "Measured 4.80 ms: reached."),
        ("5ms", {"device": "another cpu (OpenVINO)"}, "Measured 4.80 ms (on another device: another cpu): reached."),
        ("5ms", {"device": "cpu of a test (OpenVINO)"}, "Measured 4.80 ms: reached."),
        ("5ms", {"backend": "openvino"}, "Expected 4.76 ms: reached. Not measured there yet."),
        ("5ms", {"error": "it broke"}, "Not measured there yet."),
        ("5ms", None, "Not measured there yet."),
    ],
)
def test_a_target_in_milliseconds(target: str, row: dict[str, Any] | None, sentence: str) -> None:
    assert said(target, IN_MS, row).endswith(sentence)


def test_a_second_limit_and_a_target_that_was_missed() -> None:
    budget = IN_MS | {"max_bops": "1M", "reached": False}
    assert "within 1M Bit-Operations. Expected 4.76 ms and " in said("5ms", budget)
    assert "Bit-Operations: MISSED." in said("5ms", budget)


def test_a_device_that_is_gone_leaves_what_was_expected() -> None:
    assert said("5ms", IN_MS, {}, known=False) == "Target: at most 5.00 ms. Expected 4.76 ms: reached."


@pytest.mark.parametrize(
    ("target", "budget"),
    [
        (None, IN_MS),
        ("none", IN_MS),
        ("60x", {}),
        ("60x", {"reduction": 60.5}),
        ("5ms", {"unit": "ms", "reached": True}),
    ],
)
def test_without_a_target_or_its_outcome_nothing_is_said(target: str | None, budget: dict[str, Any]) -> None:
    assert said(target, budget) == ""


def test_page_and_markdown_say_it(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    save_device(device_of("onnxruntime", align=4), tmp_path / "device.json")
    config = {"target": "4.5ms", "cost": str(tmp_path / "device.json")}
    rundir.write_json(run.config, rundir.read_json(run.config) | config)
    rundir.write_json(run.metrics, rundir.read_json(run.metrics) | {"budget": IN_MS | {"reached": False}})
    ledger = make_ledger(run)
    sentence = "Target: at most 4.50 ms on onnxruntime. Expected 4.76 ms: MISSED. Measured 5.00 ms: MISSED by 11 %."
    assert f'<p class="lead">{sentence}</p>' in page_from_ledger(ledger)
    assert sentence in markdown_from_ledger(ledger)
