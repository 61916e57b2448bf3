"""What `--target` may ask for, and how it is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract.errors import SbsError
from sbs_train.contract.target import bops_of, target_reduction


@pytest.mark.parametrize(
    ("target", "bops_fp32", "reduction"),
    [
        ("60x", 1e9, 60.0),
        ("1x", 1e9, 1.0),
        ("2.5x", 1e9, 2.5),
        (".5G", 1e9, 2.0),
        ("32G", 64e9, 2.0),
        ("500M", 1e9, 2.0),
        (" 60x ", 1e9, 60.0),
    ],
)
def test_targets(target: str, bops_fp32: float, reduction: float) -> None:
    assert target_reduction(target, "BOPs", bops_fp32) == pytest.approx(reduction)


@pytest.mark.parametrize("target", ["none", " none "])
def test_no_target(target: str) -> None:
    assert target_reduction(target, "BOPs", 1e9) is None


@pytest.mark.parametrize("target", ["0x", "0G", "0.5x", "2G", "abc", "-3x", "", "x", "nanx", "infx"])
def test_refused_targets(target: str) -> None:
    with pytest.raises(SbsError, match="such as 60x") as caught:
        target_reduction(target, "BOPs", 1e9)
    assert str(caught.value).startswith(f"--target {target}")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_target_or_a_reason(target: str) -> None:
    with contextlib.suppress(SbsError):
        reduction = target_reduction(target, "BOPs", 1e12)
        assert reduction is None or reduction >= 1


@pytest.mark.parametrize(("target", "reduction"), [("1.2ms", 5.0), ("2x", 2.0), ("3 ms", 2.0)])
def test_latencies(target: str, reduction: float) -> None:
    assert target_reduction(target, "ms", 6.0) == pytest.approx(reduction)


@pytest.mark.parametrize(
    ("target", "unit", "remedy"),
    [("1.2ms", "BOPs", "profile-device"), ("32G", "ms", "--max-bops"), ("7ms", "ms", "such as 2x")],
)
def test_targets_in_the_wrong_unit(target: str, unit: str, remedy: str) -> None:
    with pytest.raises(SbsError, match=remedy):
        target_reduction(target, unit, 6.0)  # type: ignore[arg-type]


def test_a_second_limit_is_in_bops() -> None:
    assert bops_of("1.5G", "--max-bops") == 1.5e9
    with pytest.raises(SbsError, match="--max-bops 5x: not BOPs such as 5G"):
        bops_of("5x", "--max-bops")
