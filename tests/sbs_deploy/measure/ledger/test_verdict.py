from dataclasses import replace

import pytest

from sbs_deploy.measure.ledger.verdict import MEANINGS, Facts, judge

FAST = Facts(
    fp32_ms=1.0,
    ms=0.4,
    converting_ms=0.0,
    macs_left=1.0,
    planned_bits=(8, 8),
    executed_bits=(8, 8),
    depthwise=False,
    aligned=True,
    intensity=100.0,
    on_gpu=False,
)
SLOW = replace(FAST, ms=0.9)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (FAST, "paid off"),
        (replace(FAST, depthwise=True, aligned=False, intensity=1.0), "paid off"),
        (replace(FAST, planned_bits=(2, 8)), "2/4 bit executed as 8 bit"),
        (replace(FAST, planned_bits=(8, 4)), "2/4 bit executed as 8 bit"),
        (SLOW, "partly paid off"),
        (replace(SLOW, planned_bits=(4, 4)), "partly paid off"),
        (replace(SLOW, converting_ms=0.3), "reformat or requantization"),
        (replace(SLOW, aligned=False, depthwise=True), "unaligned channels"),
        (replace(SLOW, depthwise=True, intensity=2.0), "depthwise"),
        (replace(SLOW, intensity=2.0), "memory-bound"),
        (replace(SLOW, intensity=100.0, on_gpu=True), "memory-bound"),
        (replace(SLOW, intensity=None), "partly paid off"),
        (replace(FAST, ms=0.98), "not faster"),
        (replace(FAST, ms=5.0, intensity=2.0), "not faster"),
        (replace(FAST, planned_bits=(32, 32), executed_bits=(32, 32)), "left in float"),
        (replace(FAST, executed_bits=(32, 32), macs_left=0.5), "paid off"),
        (replace(FAST, ms=None), "not timed"),
        (replace(FAST, fp32_ms=None), "not timed"),
        (replace(FAST, ms=0.0), "not timed"),
    ],
)
def test_verdicts(facts: Facts, verdict: str) -> None:
    assert judge(facts) == verdict
    assert verdict in MEANINGS


def test_converting_is_said_as_it_is_judged() -> None:
    """At a quarter of the time the rest is still the products'."""
    assert judge(replace(SLOW, ms=1.0, converting_ms=0.25)) == "reformat or requantization"
    assert MEANINGS["reformat or requantization"] == "a quarter or more of its time goes into converting values"


def test_what_arithmetic_allows() -> None:
    """Four 8-bit values where one of 32 bits was, and half the products."""
    assert FAST.attainable == 4
    assert replace(FAST, macs_left=0.5).attainable == 8
    assert replace(FAST, executed_bits=(16, 16)).attainable == 2


def test_pruning_raises_what_a_layer_has_to_gain() -> None:
    """1.8x is a third of log 4 and more, but less than a third of log 16."""
    facts = replace(FAST, ms=1 / 1.8)
    assert judge(facts) == "paid off"
    assert judge(replace(facts, macs_left=0.25)) == "partly paid off"
