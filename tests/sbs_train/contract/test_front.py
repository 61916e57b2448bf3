"""The Pareto front against its definition, and the knee against fronts made by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract.front import knee_of, pareto_front

COSTS = st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])
SCORES = st.sampled_from([80.0, 85.0, 88.0, 90.0, 91.0])
POINTS = st.lists(st.tuples(COSTS, SCORES), max_size=8)


def split(points):
    return [cost for cost, _ in points], [score for _, score in points]


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    def beaten(one):
        return any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)

    front = pareto_front(*split(points))
    assert sorted(front) == [index for index, point in enumerate(points) if not beaten(point)]
    assert [points[index] for index in front] == sorted(points[index] for index in front)


@given(POINTS)
def test_the_knee_is_on_the_front_and_above_the_chord_between_its_ends(points):
    knee, front = knee_of(*split(points)), pareto_front(*split(points))
    if knee is None:
        return
    assert knee in front
    (low, worst), (high, best) = points[front[0]], points[front[-1]]
    part = math.log(points[knee][0] / low) / math.log(high / low)
    assert points[knee][1] > worst + part * (best - worst)


@given(POINTS, st.floats(1e-6, 1e9), st.floats(0.1, 3), st.floats(-20, 20))
def test_units_and_offsets_move_nothing(points, unit, scale, offset):
    costs, scores = split(points)
    moved = [cost * unit for cost in costs], [score * scale + offset for score in scores]
    assert pareto_front(*moved) == pareto_front(costs, scores)
    assert knee_of(*moved) == knee_of(costs, scores)


@given(POINTS)
def test_a_point_that_is_no_better_changes_nothing(points):
    costs, scores = split(points)
    if points:
        assert knee_of([*costs, max(costs) + 1], [*scores, min(scores) - 1]) == knee_of(costs, scores)


@pytest.mark.parametrize(
    ("costs", "scores", "knee"),
    [
        ([1, 10, 100], [80, 90, 91], 1),
        ([100, 1, 10], [91, 80, 90], 2),
        ([1, 2, 4, 8, 16, 32], [60, 80, 88, 90, 90.5, 90.6], 2),
        # Every tenfold of the cost counts alike: a straight line has no knee.
        ([1, 10, 100, 1000], [80, 84, 88, 92], None),
        ([1, 10, 100], [80, 81, 91], None),
        ([1, 10], [80, 90], None),
        ([5], [80], None),
        ([], [], None),
        ([5, 5, 5], [80, 80, 80], None),
        ([1, 10, 20, 100], [80, 70, 60, 91], None),
        ([1, 10, 10, 100], [80, 90, 90, 91], 1),
    ],
)
def test_fronts_made_by_hand(costs, scores, knee):
    assert knee_of(costs, scores) == knee
