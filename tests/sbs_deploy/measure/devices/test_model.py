"""What becomes of measurements, on an engine whose times are a formula."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.profile import DeviceProfile
from sbs_train.contract.device import load_device, save_device
from tests.sbs_deploy.measure.devices.formula import (
    FLOAT,
    SWITCH_MS,
    Formula,
    ignore,
    measure,
    profile_of,
    steps_of,
)
from tests.sbs_deploy.measure.devices.networks import residual_network

pytest.importorskip("onnxruntime")
NETWORK = residual_network()


def profile_in(folder: Path) -> DeviceProfile:
    profile = profile_of(NETWORK, folder=folder, points=3)
    profile.run(deadline=None, progress=ignore)
    return profile


def test_surfaces_are_the_formula_in_int8_and_in_float(tmp_path: Path, formula: Formula) -> None:
    device = device_model(profile_in(tmp_path))
    save_device(device, tmp_path / "device.json")
    assert load_device(tmp_path / "device.json").model_dump_json() == device.model_dump_json()
    (network,) = device.networks
    assert [step.name for step in network.layers] == NETWORK.layers
    assert [step.follows for step in network.layers] == [None, "stem", "expand", "depthwise", "project", "branch"]
    for place, step in enumerate(network.layers):
        surface = device.surfaces[step.surface]
        inputs = [1] * len(surface.channels_in) if surface.kind == "depthwise" else surface.channels_in
        outputs = surface.channels_out
        if surface.kind == "depthwise":
            expected = np.array([[2 * channels / 1000] for channels in surface.channels_in])
        else:
            expected = np.array([[(i + 1) * o / 1000 for o in outputs] for i in inputs])
        before = 0.0 if place else 0.5  # what runs before the first layer is a part of it, and not slower in float
        np.testing.assert_allclose(surface.ms, expected + before, rtol=0.15)
        np.testing.assert_allclose(surface.float_ms, FLOAT * expected + before, rtol=0.15)
    dense = steps_of(NETWORK, NETWORK.variants(3)[0])
    assert network.quantized_ms == pytest.approx(sum(dense.values()))
    assert network.fp32_ms == pytest.approx(FLOAT * sum(dense.values()) - 0.5)
    assert network.switch_us * 1e-3 == pytest.approx(SWITCH_MS, rel=0.2)
    assert device.held_out.networks and device.held_out.worst_error < 0.01


@pytest.mark.parametrize(("overhead_ms", "part"), [(0.0, 0.6), (0.01, 1.0), (-0.001, 1.1)])
def test_whole_networks_count_and_not_what_the_profiler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overhead_ms: float, part: float
) -> None:
    Formula(overhead_ms, part).install(monkeypatch)
    device = device_model(profile_in(tmp_path))
    assert device.held_out.median_error < 0.01 and device.held_out.worst_error < 0.03


def test_a_profiler_of_whole_microseconds_does_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All times are a thousandth, so layers take 0 to 10 us, and the profiler drops what is below one."""

    def measured(task):  # type: ignore[no-untyped-def]
        found = Formula(part=1e-3).measured(task)
        for spent in found["steps"].values():
            spent["ms"] = np.floor(spent["ms"]) * 1e-3
        return found

    measure(monkeypatch, measured)
    device = device_model(profile_in(tmp_path))
    assert device.held_out.median_error < 0.03


def test_a_network_whose_nodes_a_profiler_does_not_see_takes_what_it_takes(
    tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(monkeypatch, lambda task: formula.measured(task) | {"steps": {}})
    device = device_model(profile_in(tmp_path))
    assert device.networks[0].quantized_ms == pytest.approx(sum(steps_of(NETWORK, NETWORK.variants(3)[0]).values()))


def test_layers_that_are_alike_share_a_surface(tmp_path: Path, formula: Formula) -> None:
    other = replace(NETWORK, name="again", sha256="another")
    profile = profile_of(NETWORK, other, folder=tmp_path, points=2)
    profile.run(deadline=None, progress=ignore)
    one, two = device_model(profile).networks
    assert [step.surface for step in one.layers] == [step.surface for step in two.layers]
