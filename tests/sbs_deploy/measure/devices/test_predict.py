"""What a plan takes, against the search's own arithmetic and against the machine's formula."""

from pathlib import Path

import numpy as np
import pytest

from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.networks import load_network
from sbs_deploy.measure.devices.predict import network_in, predicted_ms, predicted_steps
from sbs_train.contract.device import DeviceModel
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.measure.devices.formula import Formula, ignore, profile_of

pytest.importorskip("onnxruntime")


@pytest.fixture
def device(exported: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceModel:
    """The dense network of a run, on the machine of the formula, which charges in steps of 2 channels."""
    Formula().install(monkeypatch)
    network = load_network(str(exported.root), (1, 1, 1), None, 1)
    profile = profile_of(network, folder=tmp_path, align=2, points=4)
    profile.run(deadline=None, progress=ignore)
    return device_model(profile)


def test_the_search_pays_the_same(exported: RunDir, device: DeviceModel) -> None:
    from sbs_train.quant.latency import device_cost
    from sbs_train.quant.space import SearchSpace
    from sbs_train.stages.weights import restore

    network, plan = restore(exported)
    assert plan is not None
    measured = network_in(device, plan)
    space = SearchSpace(
        network.layers,
        network.topology.groups,
        network.config.search,
        fixed=network.topology.fixed,
        prune=True,
        quantize=True,
        device=device_cost(device, measured, list(network.layers)),
    )
    kept = [plan.kept_fraction(group.id) for group in space.prunable]
    assert any(fraction < 1 for fraction in kept)
    bits = [[getattr(plan.layer(name), field) for name in space.searched] for field in ("bits_w", "bits_a")]
    bits_L = space.all_bits(*(np.array(values, np.float64) for values in bits))
    assert space.detours_taken(space.cost, bits_L[1]).any()
    assert predicted_ms(device, measured, plan) == pytest.approx(space.total(*bits, kept, space.cost))


def test_a_plan_costs_what_the_machine_takes(exported: RunDir, device: DeviceModel) -> None:
    plan = load_plan(exported.plan)
    measured = network_in(device, plan)
    found = predicted_steps(device, measured, plan)
    bits = {layer.name: layer.bits_a for layer in plan.layers}
    split = {
        name
        for tensor in measured.shared
        if len({bits[reader] for reader in tensor.readers} | ({8} if tensor.added else set())) > 1
        for name in tensor.owners
    }
    assert split, "the fixture's random bits differ somewhere"
    charged = {g.id: min(g.size, -(-len(g.kept) // 2) * 2) for g in plan.groups}
    for layer in plan.layers:
        inputs, outputs = (max(charged[g], -(-plan.group(g).size // 4)) for g in (layer.group_in, layer.group_out))
        assert found[layer.name] == pytest.approx(measured.scale * inputs * outputs / 1000), layer.name
        behind = outputs / 1000 * (2 if layer.name in split else 1)
        assert found[f"behind {layer.name}"] == pytest.approx(measured.scale * behind), layer.name
    assert found["the rest"] == pytest.approx(measured.scale * 0.5)
    assert predicted_ms(device, measured, plan) == pytest.approx(sum(found.values()))


def test_a_plan_of_another_network_is_refused(device: DeviceModel) -> None:
    plan = small_plan()
    with pytest.raises(SbsError, match="no network with these layers"):
        network_in(device, plan)
    with pytest.raises(SbsError, match="it is of another network"):
        predicted_ms(device, device.networks[0], plan)


def test_a_coarse_input_is_charged_as_such(exported: RunDir, device: DeviceModel) -> None:
    plan = load_plan(exported.plan)
    measured = network_in(device, plan)
    name = plan.layers[3].name
    step = next(step for step in measured.layers if step.name == name)
    surface = device.surfaces[step.surface]
    half = surface.model_copy(update={"ms": [[ms / 2 for ms in row] for row in surface.ms]})
    device = device.model_copy(update={"surfaces": [*device.surfaces, half]})
    marked = step.model_copy(update={"coarse": len(device.surfaces) - 1})
    measured = measured.model_copy(update={"layers": [marked if one is step else one for one in measured.layers]})
    found = {}
    for bits in (2, 8):
        layers = [layer.model_copy(update={"bits_a": bits} if layer.name == name else {}) for layer in plan.layers]
        found[bits] = predicted_steps(device, measured, plan.model_copy(update={"layers": layers}))
    assert found[2][name] == pytest.approx(found[8][name] / 2)
