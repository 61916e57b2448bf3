"""Targets of a sweep: each once, each in a directory of its own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.sweep.directory import shortest_forms

BOPS, MS = TrainConfig(), TrainConfig(cost=Path("device.json"))


def test_no_spaces_and_no_needless_zeros():
    assert shortest_forms(["20x", "66.50 x", "32G", "5000000"], BOPS) == ["20x", "66.5x", "32G", "5000000"]
    assert shortest_forms(["1.20ms", " .5ms", "2x"], MS) == ["1.2ms", "0.5ms", "2x"]


@pytest.mark.parametrize(
    ("targets", "config", "words"),
    [
        ([], BOPS, "--targets 20x 40x 66x 100x"),
        (["20x", "none"], BOPS, "--targets none"),
        (["20x", "20.0x"], BOPS, "20x and 20.0x are the same target"),
        (["20x", " 20 x"], BOPS, "the same target"),
        (["1G", "1000M"], BOPS, "1G and 1000M are the same target"),
        (["20x", "banana"], BOPS, "--target banana: not a reduction"),
        (["20x", "../x"], BOPS, "not a reduction"),
        (["20x", "60"], BOPS, "did you mean 60x"),
        (["0.5x"], BOPS, "give 1x or more"),
        (["1ms"], BOPS, "needs --cost device.json"),
        (["2x", "32G"], MS, "with --cost the target is a latency"),
    ],
)
def test_what_is_refused(targets, config, words):
    with pytest.raises(SbsError, match=words):
        shortest_forms(targets, config)


@given(st.lists(st.decimals(1, 1000, places=2), min_size=1, max_size=6))
def test_two_targets_share_no_directory(numbers):
    targets = [f"{number}x" for number in numbers]
    if len(set(numbers)) == len(numbers):
        names = shortest_forms(targets, BOPS)
        assert [float(name.rstrip("x")) for name in names] == [float(number) for number in numbers]
        assert len({name.lower() for name in names}) == len(numbers)
    else:
        with pytest.raises(SbsError, match="the same target"):
            shortest_forms(targets, BOPS)
