import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.report.ticks import MOST, log_ticks

COSTS = st.lists(st.floats(1e-4, 1e13), min_size=1, max_size=5)


@given(COSTS)
def test_ticks_are_few_and_lie_apart_on_the_axis(costs: list[float]) -> None:
    (low, high), ticks = log_ticks(costs)
    at = [math.log10(tick) for tick in ticks]
    assert low < min(map(math.log10, costs)) and max(map(math.log10, costs)) < high
    assert 2 <= len(ticks) <= MOST and low - 1e-9 <= at[0] and at[-1] <= high + 1e-9
    assert min(b - a for a, b in pairwise(at)) > 0.12 * (high - low), "a label is about a tenth of a narrow chart"


@given(COSTS)
def test_ticks_are_round(costs: list[float]) -> None:
    for tick in log_ticks(costs)[1]:
        assert math.isclose(tick, float(f"{tick:.3g}"), rel_tol=1e-9), "three digits say it"


def test_ticks_of_known_axes() -> None:
    assert log_ticks([1.0, 4.9])[1] == [1.0, 2.0, 5.0]
    assert log_ticks([0.15, 8000.0])[1] == [0.1, 10.0, 1000.0]
    assert log_ticks([5.0, 10.0])[1] == [6.0, 8.0, 10.0]
