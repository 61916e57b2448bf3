from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.report.goal import Goal, search_goal
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.markdown import markdown_from_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_train.contract import rundir
from sbs_train.contract.device import save_device
from sbs_train.contract.records import Budget, Metrics
from sbs_train.contract.results import Config, Row
from tests.sbs_deploy.devices import device_of
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.report.runs import failed_row, measured_run, timed_row

IN_MS = {"unit": "ms", "reduction": 2.1, "expected_ms": 10 / 2.1, "reached": True, "max_bops": None}
"""Dense FP32 takes 10 ms."""
ROW = {"latency_p50_ms": 4.8, "speedup_vs_fp32": 1.9}


def goal_of(target: str | None, budget: dict[str, Any], *rows: Row, known: bool = True) -> Goal | None:
    device = device_of("onnxruntime") if known and budget.get("unit") == "ms" else None
    others = (timed_row(precision="fp32"), timed_row(batch=8)) if rows else ()
    metrics = Metrics(budget=Budget(**budget))
    return search_goal(small_plan(), Config(target=target), metrics, [*others, *rows], device)


@pytest.mark.parametrize(
    ("target", "wanted"), [("60x", 60.0), ("90x", 90.0), ("5M", small_plan().cost.bops_fp32 / 5e6)]
)
def test_a_target_in_bops(target: str, wanted: float) -> None:
    goal = goal_of(target, {"unit": "BOPs", "reduction": 60.5, "reached": True})
    assert goal is not None and (goal.asked, goal.reduction, goal.reached, goal.excess) == (target, 60.5, True, None)
    assert goal.wanted == pytest.approx(wanted) and "60.5x" in goal.details


@pytest.mark.parametrize(
    ("target", "changes", "excess"),
    [
        ("5ms", {}, 4.8 / 5 - 1),
        ("5ms", {"latency_p50_ms": 5.5}, 0.1),
        ("2x", {}, 2 / 1.9 - 1),
        ("2x", {"speedup_vs_fp32": None}, 4.8 / 5 - 1),
        ("5ms", {"backend": "openvino"}, None),
    ],
)
def test_a_target_in_milliseconds(target: str, changes: dict[str, Any], excess: float | None) -> None:
    goal = goal_of(target, IN_MS, timed_row(**(ROW | changes)))
    assert goal is not None and goal.reached
    assert goal.excess == (None if excess is None else pytest.approx(excess))
    assert ("MISSED" in goal.details) == (excess is not None and excess > 0)
    assert ("4.80 ms" in goal.details) == (excess is not None and "latency_p50_ms" not in changes)


@pytest.mark.parametrize(("device", "another"), [("another cpu (OpenVINO)", True), ("cpu of a test (OpenVINO)", False)])
def test_another_device_than_the_one_that_was_paid_is_named(device: str, another: bool) -> None:
    goal = goal_of("5ms", IN_MS, timed_row(**ROW, device=device))
    assert goal is not None and ("on another device" in goal.details) == another


def test_an_engine_that_failed_is_not_measured() -> None:
    goal = goal_of("5ms", IN_MS, failed_row("it broke"))
    assert goal is not None and goal.measured is goal.excess is None


def test_a_second_limit_and_a_target_that_was_missed() -> None:
    goal = goal_of("5ms", IN_MS | {"max_bops": "1M", "reached": False})
    assert goal is not None and not goal.reached and "1M BOPs" in goal.details


def test_a_device_that_is_gone_leaves_what_was_expected() -> None:
    goal = goal_of("5ms", IN_MS, timed_row(**ROW), known=False)
    assert goal is not None and goal.measured is None and goal.details == "asked 5ms; expected 4.76 ms, 2.10x"


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
def test_without_a_target_or_its_outcome_there_is_no_goal(target: str | None, budget: dict[str, Any]) -> None:
    assert goal_of(target, budget) is None


def test_page_and_markdown_show_it(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    save_device(device_of("onnxruntime"), tmp_path / "device.json")
    config = {"target": "4.5ms", "cost": str(tmp_path / "device.json")}
    rundir.write_json(run.config, rundir.read_json(run.config) | config)
    rundir.write_json(run.metrics, rundir.read_json(run.metrics) | {"budget": IN_MS | {"reached": False}})
    ledger = make_ledger(run)
    assert ledger.goal is not None and ledger.goal.excess == pytest.approx(5 / 4.5 - 1)
    for text in (page_from_ledger(ledger), markdown_from_ledger(ledger)):
        assert "asked 4.5ms" in text and "MISSED" in text and "5.00 ms" in text
