"""Variants that show every layer at all its channels: an orthogonal array over coloured axes."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.devices.design import (
    FEWEST,
    colours,
    grid_variants,
    levels_of,
    random_precisions,
    random_variant,
)
from sbs_train.contract.cost import channel_step


@given(st.integers(1, 2048), st.integers(2, 7))
def test_levels_are_multiples_of_the_step_up_to_all(size: int, points: int) -> None:
    levels, step = levels_of(size, points), channel_step(size)
    assert levels == sorted(set(levels)) and levels[-1] == size and len(levels) <= points
    assert all(level % step == 0 for level in levels)
    assert all(level >= min(size, size / FEWEST - step) for level in levels)


@given(st.integers(1, 2048))
def test_every_group_has_a_step_that_leaves_four_choices(size: int) -> None:
    step = channel_step(size)
    assert size % step == 0 and (step == 1 or size >= 4 * step)
    assert step == 16 or size % (2 * step) or size < 8 * step, "the largest such step"


@st.composite
def joined_axes(draw: st.DrawFn) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """A chain of axes with shortcuts, as in a residual network."""
    count = draw(st.integers(1, 12))
    sizes = {axis: draw(st.sampled_from([8, 16, 24, 64, 512])) for axis in range(count)}
    pairs = [(axis, axis + 1) for axis in range(count - 1)] + [(axis, axis) for axis in range(count)]
    pairs += [(axis, axis + 2) for axis in range(count - 2) if draw(st.booleans())]
    return sizes, pairs


@given(joined_axes(), st.integers(2, 5))
def test_neighbours_meet_at_every_combination(case: tuple[dict[int, int], list[tuple[int, int]]], points: int) -> None:
    sizes, pairs = case
    colour = colours(sizes, pairs)
    levels = {axis: levels_of(size, points) for axis, size in sizes.items()}
    variants = grid_variants(levels, colour, points)
    assert len(variants) <= points**2 and variants[0] == sizes, "the dense network comes first"
    assert len({tuple(variant.items()) for variant in variants}) == len(variants)
    for one, other in pairs:
        if one == other:
            continue
        assert colour[one] != colour[other]
        if max(colour[one], colour[other]) < 3:
            met = {(variant[one], variant[other]) for variant in variants}
            assert met == set(itertools.product(levels[one], levels[other]))


def test_a_network_without_open_axes_has_one_variant() -> None:
    assert grid_variants({}, {}, 4) == [{}]


@given(st.integers(1, 600), st.integers(0, 99))
def test_random_variants_are_in_steps_or_all(size: int, seed: int) -> None:
    kept = random_variant({7: size}, np.random.default_rng(seed))[7]
    assert kept == size or (kept % channel_step(size) == 0 and FEWEST * kept >= size)


def test_mixed_variants_have_runs_of_both_precisions() -> None:
    rng, names = np.random.default_rng(0), [str(index) for index in range(40)]
    for in_float in (random_precisions(names, rng) for _ in range(20)):
        changes = sum((one in in_float) != (other in in_float) for one, other in itertools.pairwise(names))
        assert 0 < len(in_float) < 40 and 0 < changes < 20
