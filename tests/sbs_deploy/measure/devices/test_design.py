"""Variants that show every layer at all its channels: an orthogonal array over coloured axes."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.devices.design import FEWEST, colours, grid_variants, levels_of, random_variants


@given(st.integers(1, 2048), st.sampled_from([1, 4, 8, 16, 32]), st.integers(2, 7))
def test_levels_are_multiples_up_to_all(size: int, align: int, points: int) -> None:
    levels = levels_of(size, align, points)
    assert levels == sorted(set(levels)) and levels[-1] == size and len(levels) <= points
    assert all(level % align == 0 for level in levels[:-1])
    assert all(level >= min(size, size / FEWEST - align) for level in levels)


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
    levels = {axis: levels_of(size, 4, points) for axis, size in sizes.items()}
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


@given(st.integers(1, 600), st.sampled_from([1, 4, 16]), st.integers(0, 99))
def test_random_variants_are_aligned_or_all(size: int, align: int, seed: int) -> None:
    for variant in random_variants({7: size}, align, 5, np.random.default_rng(seed)):
        kept = variant[7]
        assert kept == size or (kept % align == 0 and FEWEST * kept >= size)
