"""Which of several networks are worth having: the Pareto front of accuracy against cost, and its knee."""

import math
from collections.abc import Sequence

MIN_BEND = 1e-9
"""Smallest distance from the chord that is no rounding."""


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices, from cheap to dear, of the points that no other point beats: none costs less or scores more without
    being worse at the other. Equal points stand or fall together.

    >>> pareto_front([1, 2, 3, 4], [80, 90, 85, 91])
    [0, 1, 3]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for index in order:
        last = front[-1] if front else None
        if last is None or scores[index] > scores[last] or (costs[index], scores[index]) == (costs[last], scores[last]):
            front.append(index)
    return front


def knee_of(costs: Sequence[float], scores: Sequence[float]) -> int | None:
    """Index of the point of the front where a saving begins to cost more accuracy than it did before.

    It is the point farthest above the chord from the cheapest to the dearest point of the front, in (log cost, score),
    each axis scaled to that span; the cheaper one of equals. None where no point lies above the chord: the front has
    fewer than three different points, or does not bend that way.

    >>> knee_of([1, 10, 100], [80, 90, 91])
    1
    """
    front = pareto_front(costs, scores)
    if not front:
        return None
    first, last = front[0], front[-1]
    width, height = math.log(costs[last] / costs[first]), scores[last] - scores[first]
    if not width or not height:
        return None
    above = {i: (scores[i] - scores[first]) / height - math.log(costs[i] / costs[first]) / width for i in front}
    farthest = max(front, key=lambda i: above[i])
    return farthest if above[farthest] > MIN_BEND else None
