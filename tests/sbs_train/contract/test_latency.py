"""Milliseconds as a cost: interpolation against NumPy's, and networks that are not the ones that were measured."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract import rundir
from sbs_train.contract.device import load_device, save_device
from sbs_train.contract.errors import SbsError
from sbs_train.contract.latency import Surfaces, steps_at
from sbs_train.quant.gates import GateBank
from tests.sbs_train.devices import device_for, space_on
from tests.sbs_train.small import small_network


def bilinear(knots_in, knots_out, ms, x, y):
    """One way after the other; constant beyond the ends."""
    return np.interp(y, knots_out, [np.interp(x, knots_in, column) for column in ms.T])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_surfaces_are_interpolated_as_numpy_does_in_arrays_and_tensors(seed, rows, columns):
    rng = np.random.default_rng(seed)
    knots_in, knots_out = (
        np.concatenate([np.sort(rng.uniform(0.05, 0.9, (3, n - 1)), 1), np.ones((3, 1))], 1) for n in (rows, columns)
    )
    ms = rng.uniform(0.1, 5, (3, rows, columns))
    surfaces = Surfaces.of(knots_in, knots_out, ms)
    x, y = rng.uniform(0, 1, (2, 5, 3))
    expected = [
        [bilinear(knots_in[k], knots_out[k], ms[k], a[k], b[k]) for k in range(3)] for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(surfaces.at(x, y), expected, rtol=1e-9)
    tensors = Surfaces(**{k: torch.from_numpy(v) for k, v in vars(surfaces).items()})
    found = tensors.at(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
def test_the_dense_network_costs_what_was_measured_whatever_its_bits(model):
    network = small_network(model=model)
    device = device_for(network)
    space = space_on(network, device)
    count, full = len(space.searched), [1.0] * len(space.prunable)
    for bits in (2, 4, 8):
        total = space.total([bits] * count, [bits] * count, full, space.cost)
        assert total == pytest.approx(device.networks[0].quantized_ms)
    assert space.reduction([8] * count, [8] * count, full) == pytest.approx(3)
    assert space.bops([2] * count, [2] * count, full) < space.bops([8] * count, [8] * count, full)


def test_channels_between_two_steps_cost_what_the_next_does():
    network = small_network(width=16)
    space = space_on(network, device_for(network))
    bits = [8] * len(space.searched)
    group = space.prunable[0]

    def ms(channels):
        kept = [channels / group.size] + [1.0] * (len(space.prunable) - 1)
        return space.total(bits, bits, kept, space.cost)

    assert group.size == 16 and ms(8) == ms(5) < ms(9) == ms(12) < ms(16)


def test_layers_in_float_cost_their_float_times_and_the_changes_between():
    """Two layers in float in the middle: into float and back, 5 us and 2 ns an element each."""
    network = small_network(width=16)
    device = device_for(network, switch_us=5.0, switch_ns=2.0)
    space, (measured,) = space_on(network, device), device.networks
    names, whole = list(network.layers), [1.0] * len(space.prunable)
    bits = np.array([32 if name in names[3:5] else 8 for name in space.searched])
    own = sum(device.surfaces[step.surface].ms[-1][-1] for step in measured.layers[3:5])
    changes = 2 * 5e-3 + 2e-6 * (measured.layers[3].elements + measured.layers[5].elements)
    expected = measured.quantized_ms + 2 * own + changes  # float takes three times as long
    assert space.total(bits, bits, whole, space.cost) == pytest.approx(expected)
    found = steps_at(device, measured, dict.fromkeys(names, (1.0, 1.0)), set(names[3:5]))
    assert sum(found.values()) == pytest.approx(expected)
    entered = 3 * device.surfaces[measured.layers[3].surface].ms[-1][-1]
    assert found[names[3]] == pytest.approx(entered + 5e-3 + 2e-6 * measured.layers[3].elements)


def test_thresholds_learn_from_the_cost_of_channels():
    network = small_network(metric="error")
    space = space_on(network, device_for(network))
    bank, rng = GateBank(space), np.random.default_rng(0)
    bits_w, bits_a = rng.choice([2, 4, 8], (2, len(space.searched)))
    kept = torch.tensor(rng.uniform(0.4, 1, len(space.prunable)), dtype=torch.float32, requires_grad=True)
    bits_L = [torch.from_numpy(bits).float() for bits in space.all_bits(bits_w, bits_a)]
    found = bank.cost(*bits_L, kept)

    def ms(fractions):
        """Without steps of channels, which have no slope."""
        whole = np.append(fractions, 1.0)
        ends = whole[space.group_in], whole[space.group_out]
        return space.cost.constant + space.cost.of(*ends, *space.all_bits(bits_w, bits_a), slice(None)).sum()

    assert found.item() == pytest.approx(ms(kept.tolist()), rel=1e-5)
    found.backward()
    for p in range(len(space.prunable)):
        fewer, more = kept.tolist(), kept.tolist()
        fewer[p], more[p] = fewer[p] - 1e-4, more[p] + 1e-4
        assert kept.grad[p].item() == pytest.approx((ms(more) - ms(fewer)) / 2e-4, rel=1e-2)


def test_files_of_earlier_versions_are_to_be_measured_again(tmp_path):
    document = device_for(small_network()).model_dump() | {"schema_version": 1, "align": 8}
    rundir.write_json(tmp_path / "device.json", document)
    with pytest.raises(SbsError, match=r"schema_version.*sbs-deploy profile-device --out"):
        load_device(tmp_path / "device.json")


def test_the_file_survives_the_disk_and_other_networks_are_refused(tmp_path):
    network = small_network()
    device = device_for(network)
    save_device(device, tmp_path / "device.json")
    loaded = load_device(tmp_path / "device.json")
    assert loaded == device
    with pytest.raises(SbsError, match=r"measured: resnet20 at 1x8x8\); measure it with `sbs-deploy profile-device"):
        space_on(small_network(width=4), loaded)
    with pytest.raises(SbsError, match="profile-device"):
        space_on(small_network(size=16), loaded)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["surfaces"][0]["ms"].pop(), "a row for every number of inputs"),
        (lambda d: d["surfaces"][0]["ms"][0].__setitem__(0, 0.0), "ms"),
        (lambda d: d["surfaces"][0]["float_ms"][0].pop(), "float_ms must have a row"),
        (lambda d: d["networks"][0]["layers"][0].update(surface=999), "names surface 999"),
        (lambda d: d["networks"][0]["layers"][0].update(follows="fc"), "follows fc, no layer before it"),
        (lambda d: d.update(schema_version=3), "newer"),
    ],
)
def test_damaged_files_are_refused_with_the_command_that_makes_them(tmp_path, change, words):
    document = device_for(small_network()).model_dump()
    change(document)
    rundir.write_json(tmp_path / "device.json", document)
    with pytest.raises(SbsError, match=words):
        load_device(tmp_path / "device.json")
