"""The controller on a simulated search, and the projection onto the budget on random plans."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.stages.budget import TOLERANCE, Controller, Dial, project


@pytest.mark.parametrize("target", [20, 60, 125, 240])
@pytest.mark.parametrize("sensitivity", [0.03, 0.1, 0.3])
def test_the_controller_reaches_the_target_whatever_lambda_that_takes(target, sensitivity):
    # A search whose reduction drifts towards 16 * (1 + lambda / sensitivity), slowly.
    controller, log_reduction, steps = Controller(start=16, target=target), math.log(16), 800
    for step in range(steps):
        goal = math.log(16 * (1 + controller.value / sensitivity))
        log_reduction += 0.02 * (goal - log_reduction)
        controller.update(math.exp(log_reduction), step / steps)
    assert math.exp(log_reduction) == pytest.approx(target, rel=0.1)


def test_the_controller_resumes_where_it_was():
    first, second = Controller(start=16, target=60), Controller(start=16, target=60)
    for step in range(10):
        first.update(17.0, step / 100)
    second.load_state_dict(first.state_dict())
    first.update(18.0, 0.11)
    second.update(18.0, 0.11)
    assert first.value == second.value


def plant(macs, positions):
    """Dials with random margins and the reduction they amount to, computed by NumPy alone."""
    rng = np.random.default_rng(len(macs))
    dials = []
    for index, position in enumerate(positions):
        margins = [abs(rng.normal()) if i < position else -abs(rng.normal()) for i in range(2)]
        dials.append(Dial(name=str(index), margins=margins, position=position))
    bits = np.array([2, 4, 8])

    def reduction():
        chosen = np.array([bits[d.position] for d in dials])
        return float(1024 * np.sum(macs) / np.sum(np.array(macs) * chosen[::2] * chosen[1::2]))

    return dials, reduction


@settings(max_examples=100, deadline=None)
@given(data=st.data(), target=st.floats(17, 250), layers=st.integers(8, 30))
def test_projection_meets_any_target_that_can_be_met(data, target, layers):
    macs = data.draw(st.lists(st.floats(0.5, 2), min_size=layers, max_size=layers))
    positions = data.draw(st.lists(st.integers(0, 2), min_size=2 * layers, max_size=2 * layers))
    dials, reduction = plant(macs, positions)
    found = project(dials, reduction, target)
    assert found == reduction()
    assert found >= target
    # The smallest change of one layer is worth more than the window only at the very ends of the range.
    assert found <= target * (1 + TOLERANCE) or target < 20 or target > 200 or layers < 12


def test_projection_leaves_a_plan_that_fits_alone():
    dials, reduction = plant([1.0] * 10, [1] * 20)
    assert project(dials, reduction, reduction() / 1.02) == reduction()
    assert [d.position for d in dials] == [1] * 20


def test_the_smallest_margins_flip_first():
    dials, reduction = plant([1.0] * 20, [2] * 40)
    dials[7].margins[1] = 1e-6
    project(dials, reduction, 16.3)
    assert [d.name for d in dials if d.position != 2] == ["7"]


def test_an_unreachable_target_ends_at_the_cheapest_plan():
    dials, reduction = plant([1.0] * 4, [2] * 8)
    assert project(dials, reduction, 5000) == pytest.approx(256)
    assert all(d.position == 0 for d in dials)


def test_a_target_below_the_range_ends_at_the_most_expensive_plan():
    dials, reduction = plant([1.0] * 4, [0] * 8)
    assert project(dials, reduction, 2.0) == pytest.approx(16)
