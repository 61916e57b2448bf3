"""Nested grids: worked values, and properties for every list of bitwidths a user may give."""

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import (
    CONTAINER_MAX,
    CONTAINER_MIN,
    Family,
    Grid,
    Level,
    Role,
    activation_role,
    make_grid,
    range_quantizer,
)

ROLES = st.sampled_from(get_args(Role))
FAMILIES = st.sampled_from(get_args(Family))
ASCENDING = st.sets(st.integers(2, 8), min_size=1).map(lambda bits: tuple(sorted(bits)))


def values(level: Level) -> set[Fraction]:
    return {Fraction(int(code), level.steps) for code in level.codes()}


def grid_or_none(role: Role, bits: tuple[int, ...], family: Family) -> Grid | None:
    """The grid, or None where it is refused; a refusal must name the bitwidths and a remedy."""
    try:
        return make_grid(role, bits, family)
    except SbsError as error:
        message = str(error)
        assert "\n" not in message
        assert ";" in message or "such as" in message, message
        assert any(str(b) in message for b in bits), message
        return None


def nearest_values(x: np.ndarray, level: Level, clip: float) -> np.ndarray:
    """Distance of each x to the nearest level, found by looking at all of them."""
    return np.abs(x[:, None] - level.codes()[None] * (clip / level.steps)).min(axis=1)


@pytest.mark.parametrize(
    ("role", "family", "expected"),
    [
        ("weight", "int8", [(3, -3, 3, True), (15, -15, 15, True), (120, -120, 120, False)]),
        ("unsigned", "int8", [(3, 0, 3, False), (15, 0, 15, False), (120, 0, 127, False)]),
        ("signed", "int8", [(1, -1, 1, False), (7, -7, 7, False), (126, -128, 127, False)]),
        ("weight", "paper", [(3, -3, 3, True), (15, -15, 15, True), (255, -255, 255, True)]),
        ("unsigned", "paper", [(3, 0, 3, False), (15, 0, 15, False), (255, 0, 255, False)]),
        ("signed", "paper", [(3, -3, 3, True), (15, -15, 15, True), (255, -255, 255, True)]),
    ],
)
def test_worked_values_of_2_4_8(role: Role, family: Family, expected: list[tuple[int, int, int, bool]]) -> None:
    grid = make_grid(role, (2, 4, 8), family)
    assert grid.bits == (2, 4, 8)
    assert [(level.steps, level.code_min, level.code_max, level.odd) for level in grid.levels] == expected


def test_number_of_levels() -> None:
    counts = {role: [len(level.codes()) for level in make_grid(role, (2, 4, 8)).levels] for role in get_args(Role)}
    assert counts == {"weight": [4, 16, 241], "unsigned": [4, 16, 128], "signed": [3, 15, 256]}


@given(ROLES, ASCENDING, FAMILIES)
def test_coarse_levels_are_contained_in_finer_ones(role: Role, bits: tuple[int, ...], family: Family) -> None:
    grid = grid_or_none(role, bits, family)
    if grid is None:
        return
    assert grid.bits == bits
    for index, coarse in enumerate(grid.levels):
        for fine in grid.levels[index + 1 :]:
            assert values(coarse) <= values(fine)


@given(ROLES, ASCENDING)
def test_int8_codes_fit_the_container(role: Role, bits: tuple[int, ...]) -> None:
    grid = grid_or_none(role, bits, "int8")
    for level in grid.levels if grid else ():
        codes = level.codes()
        assert codes.min() >= CONTAINER_MIN and codes.max() <= CONTAINER_MAX
        saturates = role == "signed" and level.bits == 8
        lowest = CONTAINER_MIN if saturates else -codes.max()
        assert codes.min() == (0 if role == "unsigned" else lowest)
        assert level.code_max >= level.steps, "the clip value itself is a level"


@given(ROLES, st.lists(st.integers(-1, 40), max_size=4))
def test_any_list_gives_a_grid_or_a_reason(role: Role, bits: list[int]) -> None:
    well_formed = bool(bits) and bits == sorted(set(bits)) and bits[0] >= 2 and bits[-1] <= 8
    if well_formed:
        grid_or_none(role, tuple(bits), "int8")
    else:
        with pytest.raises(SbsError, match="distinct, ascending and within 2..8, such as 2 4 8"):
            make_grid(role, tuple(bits))


@pytest.mark.parametrize(
    ("role", "bits", "reason"),
    [
        ("weight", (3, 4), "3-bit weight levels are not contained in the 4-bit ones"),
        ("unsigned", (2, 3, 4), "2-bit unsigned levels are not contained in the 3-bit ones"),
        ("signed", (3, 5, 7), "5-bit signed levels are not contained in the 7-bit ones"),
        ("weight", (3, 5, 8), "no 8-bit grid within ±127"),
    ],
)
def test_refused_lists_say_why(role: Role, bits: tuple[int, ...], reason: str) -> None:
    with pytest.raises(SbsError, match=reason):
        make_grid(role, bits)


@given(
    ROLES,
    ASCENDING,
    FAMILIES,
    st.floats(1e-3, 1e3),
    st.lists(st.floats(-3, 3, allow_nan=False), min_size=1, max_size=50),
)
def test_quantize_finds_the_nearest_level(
    role: Role, bits: tuple[int, ...], family: Family, clip: float, normalised: list[float]
) -> None:
    grid = grid_or_none(role, bits, family)
    x = np.array(normalised) * clip
    for level in grid.levels if grid else ():
        codes = level.quantize(x, clip)
        assert np.isin(codes, level.codes()).all()
        a, c, lo, hi = level.affine()
        affine = (np.round(np.clip(x / clip * a - c, lo, hi)) + c) / a
        np.testing.assert_allclose(affine, codes / level.steps, rtol=1e-12, atol=1e-12)
        error = np.abs(x - codes * (clip / level.steps))
        np.testing.assert_allclose(error, nearest_values(x, level, clip), rtol=1e-9, atol=1e-9 * clip)


@given(ROLES, ASCENDING, FAMILIES)
def test_levels_are_fixed_points(role: Role, bits: tuple[int, ...], family: Family) -> None:
    grid = grid_or_none(role, bits, family)
    for level in grid.levels if grid else ():
        codes = level.codes()
        np.testing.assert_array_equal(level.quantize(codes / level.steps, 1.0), codes)


@given(ROLES, ASCENDING, FAMILIES)
def test_mean_error_is_that_of_an_even_spread(role: Role, bits: tuple[int, ...], family: Family) -> None:
    grid = grid_or_none(role, bits, family)
    for level in grid.levels if grid else ():
        stride = 2 if level.odd else 1
        between = (level.code_max - stride + (np.arange(1000) + 0.5) / 1000 * stride) / level.steps
        error = nearest_values(between, level, 1.0).mean()
        assert error == pytest.approx(level.mean_error(), rel=1e-3)


def test_level_of_a_bitwidth() -> None:
    grid = make_grid("weight", (2, 4, 8))
    assert grid.level(4) is grid.levels[1]
    with pytest.raises(SbsError, match=r"3 bits are not among the candidates \[2, 4, 8\]"):
        grid.level(3)


def test_activation_role() -> None:
    assert (activation_role(True), activation_role(False)) == ("signed", "unsigned")


@given(low=st.floats(-1e6, 0), high=st.floats(0, 1e6))
def test_a_range_has_all_codes_of_a_byte_and_zero_among_them(low: float, high: float) -> None:
    if high - low < 1e-6:
        return
    found = range_quantizer(low, high)
    assert found.code_max - found.code_min == 255 and found.code_min <= 0 <= found.code_max
    half = found.step * 0.5000001
    assert abs(found.code_min * found.step - low) <= half and abs(found.code_max * found.step - high) <= half
