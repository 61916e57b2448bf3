"""The Pareto front of a score against cost over several networks, and its knee."""

import math
from collections.abc import Sequence

MIN_BEND = 1e-9
"""A distance from the chord below this is rounding."""


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices, from cheap to expensive, of the points that no other point beats. A point beats another if it is no
    worse in cost and score, and better in one. Equal points are on the front together or not at all.

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
    """Index of the point of the front where a saving begins to cost more of the score than it did before.

    The knee is farthest above the chord from the cheapest to the most expensive point of the front, in (log cost,
    score), each axis scaled to the chord's span; of equals the cheaper. None where no point lies above the chord: the
    front has fewer than three different points, or bends the other way.

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
