"""Ticks of a logarithmic axis, few enough that their labels do not overlap on a phone."""

import math
from collections.abc import Sequence

MOST = 4
"""Ticks that fit on a narrow chart."""
MARGIN = 0.12
"""Part of the axis that stays free at either end, where marks have their names."""
NARROW = 0.1
"""Shortest span, in tenfolds: a single value has an axis too."""


def log_ticks(values: Sequence[float]) -> tuple[tuple[float, float], list[float]]:
    """(both ends of an axis that holds the values, as log10; ticks on it).

    Ticks stand at 1, 2 and 5 times powers of ten; at powers of ten alone, or at every nth of them, where those are too
    many; at even steps where the axis is so short that they are too few.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(MARGIN * (high - low), NARROW / 2)
    low, high = low - margin, high + margin
    decades = range(math.floor(low), math.ceil(high) + 1)
    found = _within([factor * 10.0**decade for decade in decades for factor in (1, 2, 5)], low, high)
    if len(found) > MOST:
        powers = _within([10.0**decade for decade in decades], low, high)
        found = powers[:: math.ceil(len(powers) / MOST)] if len(powers) > 2 else found[:: math.ceil(len(found) / MOST)]
    return (low, high), found if len(found) > 2 else _even(10**low, 10**high)


def _within(values: Sequence[float], low: float, high: float) -> list[float]:
    return [value for value in values if low <= math.log10(value) <= high]


def _even(low: float, high: float) -> list[float]:
    """Multiples of a round number."""
    least = (high - low) / MOST
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= least)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
