"""Measurements survive whatever stops the machine."""

from pathlib import Path

import pytest

from sbs_deploy.measure.devices.cache import Cache
from sbs_train.contract.errors import SbsError


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "device.json.cache.jsonl"
    cache = Cache(path)
    for ms in (1.0, 2.0):
        cache.add("a", {"layer": ms})
    cache.add("b", {})
    assert Cache(path).found("a") == cache.found("a") == [{"layer": 1.0}, {"layer": 2.0}]
    assert Cache(path).found("b") == [{}] and Cache(path).found("c") == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_that_was_cut_off_does_not_count_and_hurts_no_later_one(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cache.jsonl"
    cache = Cache(path)
    cache.add("a", {"layer": 1.0})
    cache.add("b", {"layer": 2.0})
    path.write_bytes(path.read_bytes()[:-cut])
    again = Cache(path)
    assert again.found("a") == [{"layer": 1.0}]
    assert again.found("b") == ([{"layer": 2.0}] if cut == 1 else [])
    again.add("c", {"layer": 3.0})
    assert Cache(path).found("c") == [{"layer": 3.0}]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SbsError, match="choose another .*--out"):
        Cache(tmp_path / "file" / "cache.jsonl")
