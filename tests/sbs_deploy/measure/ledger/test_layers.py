import math
from dataclasses import replace
from typing import Any

import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.ledger.execution import executions
from sbs_deploy.measure.ledger.layers import EngineFacts, LayerLedger, layer_ledger
from sbs_deploy.measure.ledger.verdict import LayerEntry
from sbs_train.contract.plan import Plan
from sbs_train.contract.results import LayerTime, TimedRow
from tests.sbs_deploy.graphs import CLASSES, qdq_model, small_plan
from tests.sbs_deploy.report.runs import timed_row

Part = tuple[str | None, str, float]


def row(latency_ms: float, parts: list[Part], fused: dict[str, tuple[str, ...]] | None = None) -> TimedRow:
    """A measured row whose profiler took one and a half times the latency."""
    layers = tuple(
        LayerTime(
            layer=layer, category=category, ms=1.5 * ms, share=0.0, nodes=(), fused=(fused or {}).get(layer or "", ())
        )
        for layer, category, ms in parts
    )
    return timed_row(latency_p50_ms=latency_ms, speedup_vs_fp32=None, layers=layers)


FP32: list[Part] = [("conv1", "layer", 1.0), ("conv2", "layer", 6.0), ("conv3", "layer", 2.0), ("fc", "layer", 1.0)]
INT8: list[Part] = [
    ("conv1", "layer", 0.5),
    ("conv2", "layer", 1.0),
    ("conv3", "layer", 0.9),
    ("conv3", "requantization", 0.6),
    ("fc", "layer", 1.0),
    (None, "elementwise", 0.75),
    (None, "requantization", 0.25),
]


def ledger(plan: Plan | None = None, multiple: int = 4, **more: Any) -> LayerLedger:
    plan = small_plan() if plan is None else plan
    runs = executions(qdq_model("ort"), [layer.name for layer in plan.layers])
    changes = {"speedup_vs_fp32": 2.0, "speedup_interval": (1.5, 3.0)} | more
    engine = EngineFacts(backend=replace(ONNXRUNTIME, channel_multiple=multiple), executed=runs)
    return layer_ledger(plan, row(5.0, INT8).model_copy(update=changes), row(10.0, FP32), engine)


def by_name(found: LayerLedger) -> dict[str, LayerEntry]:
    return {entry.name: entry for entry in found.entries}


def test_three_ledgers_join_by_layer() -> None:
    entries = by_name(ledger())
    assert list(entries) == ["conv1", "conv2", "conv3", "fc"]
    conv2 = entries["conv2"]
    # 16 * 32 filters of 9 over 64 pixels, half of them kept; 2/4 bits that run as 8/8 (the graph is not pruned).
    assert (conv2.bops_fp32, conv2.bops_paper) == (16 * 32 * 9 * 64 * 1024, 16 * 16 * 9 * 64 * 8)
    assert conv2.bops_deployable == 16 * 32 * 9 * 64 * 64
    assert (conv2.bits_w, conv2.bits_a, conv2.executed_w, conv2.executed_a) == (2, 4, 8, 8)
    assert (conv2.kept_out, conv2.size_out) == (16, 32)
    assert entries["fc"].bops_deployable == 16 * CLASSES * 1024


def test_times_are_shares_of_the_latency() -> None:
    found = ledger()
    assert found.profiled == pytest.approx(1.5)
    spent = sum(entry.ms or 0 for entry in found.entries) + sum(found.between.values())
    assert spent == pytest.approx(found.latency_ms)
    conv3 = by_name(found)["conv3"]
    assert (conv3.ms, conv3.converting_ms, conv3.fp32_ms) == pytest.approx((1.5, 0.6, 2.0))
    assert found.between == pytest.approx({"elementwise": 0.75, "requantization": 0.25})


def test_verdicts_come_from_the_data() -> None:
    verdicts = {name: entry.verdict for name, entry in by_name(ledger()).items()}
    assert verdicts == {
        "conv1": "paid off",
        "conv2": "2/4 bit executed as 8 bit",
        "conv3": "reformat or requantization",
        "fc": "left in float",
    }
    assert ledger().verdicts["reformat or requantization"] == (1, pytest.approx(1.5))


def test_realised_share_and_its_interval() -> None:
    found, plan = ledger().realised_paper, small_plan()
    assert found.predicted == pytest.approx(plan.cost.reduction)
    assert found.share == pytest.approx(math.log(2) / math.log(plan.cost.reduction))
    assert found.low is not None and found.high is not None
    assert found.low == pytest.approx(math.log(1.5) / math.log(plan.cost.reduction))
    assert found.high == pytest.approx(math.log(3) / math.log(plan.cost.reduction))


def test_the_largest_lever_is_named_with_what_it_would_give() -> None:
    """Of conv3's 1.5 ms only the 0.6 that convert values can be saved, less than the 0.75 of the additions."""
    found = ledger()
    assert [lever.name for lever in found.levers] == ["elementwise", "reformat or requantization", "requantization"]
    assert [lever.saved_ms for lever in found.levers] == pytest.approx([0.75, 0.6, 0.25])
    assert found.advice.startswith("elementwise (between layers): 0.75 of 5 ms")
    assert f"{10 / (5 - 0.75):.2f}x the speed of FP32 instead of 2.00x" in found.advice


def test_converting_is_a_lever_by_its_own_time() -> None:
    parts: list[Part] = [("conv3", "layer", 1.0), ("conv3", "requantization", 2.0), ("conv1", "layer", 0.3)]
    found = ledger(layers=row(3.3, parts).layers, latency_p50_ms=3.3)
    assert found.levers[0].saved_ms == pytest.approx(2.0) and found.levers[0].least_ms == pytest.approx(1.0)


def test_no_lever_promises_more_than_arithmetic_allows() -> None:
    """conv1 took 1 ms in FP32: 8 bits fit four times into a register, and make it no 16 times faster."""
    parts: list[Part] = [("conv1", "layer", 4.0) if name == "conv1" else (name, kind, ms) for name, kind, ms in INT8]
    found = ledger(layers=row(8.5, parts).layers, latency_p50_ms=8.5, speedup_vs_fp32=10 / 8.5)
    lever = found.levers[0]
    assert (lever.name, lever.layers, lever.least_ms) == ("not faster", ("conv1",), pytest.approx(1 / 4))
    assert f"not faster (conv1): 3.75 of 8.5 ms to save, {10 / (8.5 - 3.75):.2f}x the speed of FP32" in found.advice


def test_nothing_between_layers_and_all_paid_off() -> None:
    parts: list[Part] = [(name, "layer", ms / 4) for name, _, ms in FP32]
    found = ledger(layers=row(2.5, parts).layers, latency_p50_ms=2.5, speedup_vs_fp32=4.0)
    assert found.levers == () and found.advice.startswith("nothing")


def test_times_that_profiling_disturbed_give_no_advice() -> None:
    assert ledger().trusted
    half: list[Part] = [(layer, category, ms / 2) for layer, category, ms in INT8]
    slow = ledger(layers=row(5.0, [*half, ("fc", "layer", 3.5)]).layers)  # the profiler's 5.25 ms alone
    assert not slow.trusted and slow.advice.startswith("unknown")
    noisy = ledger(layers=row(5.0, [(layer, category, 2 * ms) for layer, category, ms in INT8]).layers)
    assert noisy.profiled > 2.5 and not noisy.trusted


def test_a_verdict_goes_by_the_multiple_of_the_backend() -> None:
    """16 of 32 channels are a multiple of 4, not of 24."""
    slow: list[Part] = [(layer, category, 6.0 if layer == "conv2" else ms) for layer, category, ms in INT8]
    rows = row(10.0, slow).layers
    verdicts = [by_name(ledger(multiple=n, layers=rows, latency_p50_ms=10.0))["conv2"].verdict for n in (4, 24)]
    assert verdicts[0] != verdicts[1] == "unaligned channels"


def test_what_a_lever_would_give_starts_from_the_speed_measured_in_turns() -> None:
    """On a busy machine the ratio of the medians is another one: 10 / 5 ms here, where the turns say 1.5x."""
    found = ledger(speedup_vs_fp32=1.5, speedup_interval=None)
    assert f"{1.5 * 5 / (5 - 0.75):.2f}x the speed of FP32 instead of 1.50x" in found.advice


def test_slower_is_a_negative_share() -> None:
    share = ledger(speedup_vs_fp32=0.5, speedup_interval=None).realised_deployable
    assert share.share is not None and share.share < 0 and share.low is None


def test_layers_that_an_engine_fuses_are_one_entry() -> None:
    parts: list[Part] = [("conv1", "layer", 2.0), ("conv3", "layer", 2.0), ("fc", "layer", 1.0)]
    found = ledger(layers=row(5.0, parts, fused={"conv1": ("conv2",)}).layers)
    assert [entry.name for entry in found.entries] == ["conv1 + conv2", "conv3", "fc"]
    both = found.entries[0]
    assert both.fp32_ms == pytest.approx(7.0) and both.ms == pytest.approx(2.0)
    assert both.bops_paper == pytest.approx(sum(by_name(ledger())[name].bops_paper for name in ("conv1", "conv2")))


def test_a_layer_without_a_time_says_so() -> None:
    found = ledger(layers=row(5.0, [part for part in INT8 if part[0] != "conv1"]).layers)
    entry = by_name(found)["conv1"]
    assert (entry.ms, entry.speedup, entry.verdict) == (None, None, "not timed")


def test_a_layer_that_the_graph_does_not_name_counts_as_the_backend_executes_it() -> None:
    found = layer_ledger(small_plan(), row(5.0, INT8), row(10.0, FP32), EngineFacts(backend=ONNXRUNTIME, executed={}))
    conv2 = by_name(found)["conv2"]
    assert (conv2.executed_w, conv2.executed_a, conv2.intensity) == (8, 8, None)
    assert conv2.bops_deployable == 16 * 16 * 9 * 64 * 64
