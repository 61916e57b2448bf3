"""Choose the slim variants of a network to measure, such that every layer has all levels of inputs and outputs.

Every axis of channels takes one of P levels in every variant. With P * P variants and levels drawn from the columns of
an orthogonal array (here i, j and the Latin squares a i + j modulo P), any two axes with different columns meet at all
P * P combinations. So the axes of a graph whose layers join them get columns like colours: neighbours differ. A network
is then measured in P * P variants, however many layers it has.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sbs_train.contract.cost import channel_step

FEWEST = 4
"""The fewest channels are the dense number divided by this."""
CHANGE = 0.25
"""Chance that a layer of a mixed variant has another precision than the layer before it."""


def levels_of(size: int, points: int) -> list[int]:
    """Channels to measure of a layer with `size`: about `points` multiples of its step, and `size` itself last.

    >>> levels_of(64, 4), levels_of(16, 4), levels_of(24, 4), levels_of(3, 4)
    ([16, 32, 48, 64], [4, 8, 12, 16], [8, 12, 16, 24], [1, 2, 3])
    """
    step = channel_step(size)
    wanted = np.linspace(size / FEWEST, size, points)[:-1]
    multiples = {max(step, round(float(channels) / step) * step) for channels in wanted}
    return sorted({*(channels for channels in multiples if channels < size), size})


def colours(axes: Iterable[int], layers: Iterable[tuple[int, int]]) -> dict[int, int]:
    """A number for every axis, different at the two ends of a layer; axes with most neighbours come first."""
    neighbours: dict[int, set[int]] = {axis: set() for axis in axes}
    for one, other in layers:
        if one != other and one in neighbours and other in neighbours:
            neighbours[one].add(other)
            neighbours[other].add(one)
    found: dict[int, int] = {}
    for axis in sorted(neighbours, key=lambda axis: -len(neighbours[axis])):
        taken = {found[other] for other in neighbours[axis] if other in found}
        found[axis] = next(colour for colour in itertools.count() if colour not in taken)
    return found


def grid_variants(levels: Mapping[int, Sequence[int]], colour: Mapping[int, int], points: int) -> list[dict[int, int]]:
    """Kept channels by axis, one mapping per variant; the dense network comes first.

    Columns are i, j, i + j, 2 i + j, ...: any two of the first three have all combinations of levels for any `points`,
    and more columns do if `points` is a prime. Later columns repeat earlier ones.
    """
    found: list[dict[int, int]] = []
    for i, j in itertools.product(range(points), repeat=2):
        steps = [(_column(colour[axis], i, j, points), axis) for axis in levels]
        variant = {axis: _level(levels[axis], step, points) for step, axis in steps}
        if variant not in found:  # axes with few channels have few levels, so variants repeat
            found.append(variant)
    return found


def random_variant(sizes: Mapping[int, int], rng: np.random.Generator) -> dict[int, int]:
    """Kept channels by axis, between a quarter and all, multiples of each axis's step."""
    wanted = {axis: int(rng.integers(-(-size // FEWEST), size + 1)) for axis, size in sizes.items()}
    steps = {axis: channel_step(size) for axis, size in sizes.items()}
    return {axis: min(sizes[axis], -(-count // steps[axis]) * steps[axis]) for axis, count in wanted.items()}


def random_precisions(layers: Sequence[str], rng: np.random.Generator) -> frozenset[str]:
    """Layers of a mixed variant that stay in float: some runs of layers."""
    changes = rng.random(len(layers)) < CHANGE
    in_float = (np.cumsum(changes) + rng.integers(2)) % 2 == 1
    return frozenset(name for name, one in zip(layers, in_float, strict=True) if one)


def _column(colour: int, i: int, j: int, points: int) -> int:
    if colour < 2:
        return (i, j)[colour]
    factor = (colour - 2) % max(points - 1, 1) + 1
    return (factor * i + j) % points


def _level(levels: Sequence[int], step: int, points: int) -> int:
    """Level of a step; step 0 is the dense number, so that the first variant, all zeros, is the dense network."""
    return levels[-1 - min(step * len(levels) // points, len(levels) - 1)]
