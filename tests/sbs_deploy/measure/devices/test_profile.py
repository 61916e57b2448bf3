"""The measurement as a whole, on an engine whose times are a formula, and the cache of measurements."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.devices import profile as module
from sbs_deploy.measure.devices.design import grid_variants
from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile
from sbs_deploy.measure.devices.session import Setup
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.measure.devices.formula import Formula, ignore, measure, profile_of
from tests.sbs_deploy.measure.devices.networks import residual_network

pytest.importorskip("onnxruntime")
NETWORK = residual_network()


def profile_in(folder: Path) -> DeviceProfile:
    return profile_of(NETWORK, folder=folder, points=3)


@pytest.mark.parametrize("stop_at", [1, 5, 30])
def test_an_interrupted_run_goes_on_and_measures_nothing_twice(tmp_path: Path, formula: Formula, stop_at: int) -> None:
    formula.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        profile_in(tmp_path).run(deadline=None, progress=ignore)
    profile_in(tmp_path).run(deadline=None, progress=ignore)
    wanted = 3 * (len(NETWORK.variants(3)) + 1)
    assert formula.visits == wanted + 1, "only the measurement that was interrupted is made again"
    profile_in(tmp_path).run(deadline=None, progress=ignore)
    assert formula.visits == wanted + 1
    fresh = profile_in(tmp_path / "fresh")
    fresh.run(deadline=None, progress=ignore)
    assert device_model(profile_in(tmp_path)).surfaces == device_model(fresh).surfaces


def test_other_threads_or_channels_are_measured_anew(tmp_path: Path, formula: Formula) -> None:
    profile_in(tmp_path).run(deadline=None, progress=ignore)
    before = formula.visits
    setup = Setup(backend=ONNXRUNTIME, threads=2, batch=1)
    DeviceProfile([NETWORK], setup, points=3, cache=Cache(tmp_path / "cache.jsonl")).run(deadline=None, progress=ignore)
    assert formula.visits == 2 * before


def test_a_time_limit_leaves_what_is_complete(
    tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(NETWORK, name="second", sha256="another")
    now = iter(range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    profile = profile_of(NETWORK, other, folder=tmp_path, points=3)
    profile.run(deadline=10, progress=ignore)
    with pytest.raises(SbsError, match=r"before any network was complete .* run the same command again"):
        device_model(profile)
    profile.run(deadline=next(now) + len(NETWORK.variants(3)), progress=ignore)
    assert [network.model for network in device_model(profile).networks] == ["residual"]
    profile.run(deadline=None, progress=ignore)
    assert [network.model for network in device_model(profile).networks] == ["residual", "second"]


def test_what_a_neighbour_slows_does_not_count(
    tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = profile_in(tmp_path / "quiet")
    quiet.run(deadline=None, progress=ignore)
    rng = np.random.default_rng(0)

    def slowed(task: module.VariantTask) -> dict[str, Any]:
        """The variant and its reference are slow together; the profiler's times in one visit of two."""
        found = formula.measured(task)
        slow = float(rng.uniform(1, 3)) if rng.random() < 0.7 else 1.0
        found |= {"ms": found["ms"] * slow, "reference_ms": found["reference_ms"] * slow}
        for step in found["steps"].values():
            step["ms"] *= float(rng.uniform(1, 3)) if task.turn == 1 else 1.0
        return found

    measure(monkeypatch, slowed)
    noisy = profile_in(tmp_path / "noisy")
    noisy.run(deadline=None, progress=ignore)
    for one, other in zip(device_model(noisy).surfaces, device_model(quiet).surfaces, strict=True):
        np.testing.assert_allclose(one.ms, other.ms, rtol=1e-9)


def test_the_first_variant_is_the_dense_network() -> None:
    first = NETWORK.variants(3)[0]
    sizes = {axis: NETWORK.axes.sizes[axis] for axis in NETWORK.axes.open}
    assert (first.counts, first.in_float, first.held_out) == (sizes, frozenset(), False)
    assert grid_variants({0: [8, 16]}, {0: 0}, 2)[0] == {0: 16}


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
