"""What a plan takes, against the search's own arithmetic and against the machine's formula."""

from pathlib import Path

import pytest

from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.networks import load_network
from sbs_train.contract.cost import channel_step
from sbs_train.contract.device import DeviceModel
from sbs_train.contract.errors import SbsError
from sbs_train.contract.latency import network_in, predicted_ms, predicted_steps
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.measure.devices.formula import Formula, ignore, profile_of

pytest.importorskip("onnxruntime")


@pytest.fixture
def device(exported: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceModel:
    """The dense network of a run, on the machine of the formula."""
    Formula().install(monkeypatch)
    network = load_network(str(exported.root), (1, 1, 1), None, 1)
    profile = profile_of(network, folder=tmp_path, points=4)
    profile.run(deadline=None, progress=ignore)
    return device_model(profile)


def test_the_cost_in_a_search_is_the_same(exported: RunDir, device: DeviceModel) -> None:
    from sbs_train.contract.latency import device_cost
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
    assert predicted_ms(device, measured, plan) == pytest.approx(space.total(*bits, kept, space.cost))


def test_a_plan_costs_what_the_machine_takes(exported: RunDir, device: DeviceModel) -> None:
    plan = load_plan(exported.plan)
    measured = network_in(device, plan)
    found = predicted_steps(device, measured, plan)
    computed = {g.id: -(-len(g.kept) // channel_step(g.size)) * channel_step(g.size) for g in plan.groups}
    for place, layer in enumerate(plan.layers):
        inputs, outputs = computed[layer.group_in], computed[layer.group_out]
        expected = (inputs + 1) * outputs / 1000 + (0.0 if place else 0.5)
        assert found[layer.name] == pytest.approx(expected, rel=0.1), layer.name
    assert predicted_ms(device, measured, plan) == pytest.approx(sum(found.values()))


def test_a_plan_of_another_network_is_refused(device: DeviceModel) -> None:
    plan = small_plan()
    with pytest.raises(SbsError, match="no network with these layers"):
        network_in(device, plan)
    with pytest.raises(SbsError, match="it is of another network"):
        predicted_ms(device, device.networks[0], plan)
