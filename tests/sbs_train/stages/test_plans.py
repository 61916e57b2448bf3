"""From networks to plans and back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, save_config
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec, ModelSpec, load_plan, save_plan
from sbs_train.network.network import fastest_layout
from sbs_train.quant.gates import GateBank
from sbs_train.stages.budget import freeze_gates
from sbs_train.stages.named import named_network
from sbs_train.stages.plans import apply_plan, plan_of_network
from sbs_train.stages.rule import freeze
from sbs_train.stages.search import search_space
from sbs_train.stages.weights import finish, load_weights, restore, save_weights
from tests.sbs_train.small import image_batches, small_network


def network_of(**changes):
    return small_network(size=16, **changes)


def bank_of(network):
    return GateBank(search_space(network))


def finished(tmp_path, network, plan):
    run = rundir.create_run(tmp_path / "run")
    save_config(network.config, run.config)
    save_plan(plan, run.plan)
    save_weights(network.model.state_dict(), run.weights)
    finish(run, "finetune", {})
    return run


@pytest.mark.parametrize("target", [16.0, 30.0, 60.0, 125.0, 240.0])
def test_a_frozen_plan_costs_what_the_gates_say(target):
    network = network_of()
    bank = bank_of(network)
    torch.manual_seed(1)
    with torch.no_grad():
        bank.alpha_w.uniform_(0, 2)
        bank.alpha_a.uniform_(0, 2)
        bank.alpha_p.uniform_(0, 0.7)
    plan = freeze_gates(network, bank, target)
    assert target <= plan.cost.reduction <= target * 1.06
    for row in plan.layers:
        assert (network.layers[row.name].bits_w, network.layers[row.name].bits_a) == (row.bits_w, row.bits_a)


def test_a_run_is_restored_bit_by_bit(tmp_path):
    network = network_of()
    bank = bank_of(network)
    with torch.no_grad():
        bank.alpha_p.fill_(0.4)
        bank.alpha_a.fill_(0.5)
    plan = freeze_gates(network, bank, 40.0)
    x = torch.rand(4, 1, 16, 16)
    expected = network.model.eval()(x)
    restored, same = restore(finished(tmp_path, network, plan))
    assert same == plan
    torch.testing.assert_close(restored.model(x), expected, rtol=0, atol=0)


def test_pruned_channels_do_not_matter():
    network = network_of()
    plan = freeze(network, {}, {}, {"layer1.0.conv1": [0, 3, 5]})
    x = torch.rand(2, 1, 16, 16)
    expected = network.model.eval()(x)
    with torch.no_grad():
        weight, pruned = network.layers["layer1.0.conv1"].weight, [1, 2, 4, 6, 7]
        weight[pruned] = weight[pruned].flip(0, 1, 2)  # the same values elsewhere: the clip value stays
    torch.testing.assert_close(network.model(x), expected)
    assert plan.layer("layer1.0.conv2").kept_in == 3


def test_prune_mode_leaves_layers_in_float():
    network = network_of(mode="prune")
    plan = freeze(network, {}, {}, {"layer1.0.conv1": [0, 1]})
    assert {row.bits_w for row in plan.layers} == {32} and plan.layers[0].clip_w is None
    assert 1 < plan.cost.reduction < 1.1


def test_weights_of_another_model_are_refused(tmp_path):
    network, other = network_of(), network_of(width=4)
    run = finished(tmp_path, network, plan_of_network(network))
    save_weights(other.model.state_dict(), run.weights)
    finish(run, "finetune", {})
    with pytest.raises(SbsError, match="another model"):
        restore(run)


def test_a_plan_of_another_model_is_refused():
    plan = plan_of_network(network_of())
    spec = ModelSpec(name="resnet56", arguments={"width": 8, "num_classes": 10})
    other = named_network(TrainConfig(), spec, InputSpec(channels=1, height=8, width=8, mean=[0.3], std=[0.3]))
    with pytest.raises(SbsError, match="another model"):
        apply_plan(other, plan)


def test_a_plan_that_quantizes_what_stays_in_float_here_is_refused():
    network = network_of()
    plan, left = plan_of_network(network), "layer2.0.conv1"
    rows = [row.model_copy(update={"bits_w": 8, "bits_a": 8}) for row in plan.layers]
    del network.layers[left]
    with pytest.raises(SbsError, match=rf"{left}, which stays in float here"):
        apply_plan(network, plan.model_copy(update={"layers": rows}))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"not a file of weights at all"])
def test_damaged_weights_are_refused(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damage)
    with pytest.raises(SbsError, match="safetensors"):
        load_weights(network_of().model, path)


def test_a_truncated_plan_is_refused(tmp_path):
    network = network_of()
    run = finished(tmp_path, network, plan_of_network(network))
    run.plan.write_text(run.plan.read_text()[:500])
    finish(run, "finetune", {})
    with pytest.raises(SbsError, match=r"plan.json is damaged"):
        restore(run)


def test_clip_values_in_the_plan_are_the_ones_in_use(tmp_path):
    network = network_of()
    plan = plan_of_network(network)
    run = finished(tmp_path, network, plan)
    row = load_plan(run.plan).layer("layer3.0.conv1")
    weight = network.layers["layer3.0.conv1"].weight.detach().double().numpy()
    assert row.clip_w == pytest.approx(3 * np.std(weight, ddof=1), rel=1e-5)


@pytest.mark.parametrize(("bits", "sigmas", "clip_a"), [(2, 1.5, 0.8), (4, 2.5, 1.2), (8, 3.0, 1.5)])
def test_the_plan_holds_the_clip_value_of_its_bits_and_a_restored_run_uses_it(tmp_path, bits, sigmas, clip_a):
    network = network_of()
    names = [name for name in network.layers if name not in network.topology.fixed]
    plan = freeze(network, dict.fromkeys(names, bits), dict.fromkeys(names, bits))
    row, layer = plan.layer("layer2.1.conv2"), network.layers["layer2.1.conv2"]
    assert row.clip_w == pytest.approx(sigmas * float(layer.weight.detach().std()), rel=1e-5)
    assert row.clip_a == pytest.approx(clip_a)
    restored, _ = restore(finished(tmp_path, network, plan))
    layer = restored.layers["layer2.1.conv2"]
    assert float(layer.absolute_clip_w().detach()) == pytest.approx(row.clip_w)
    assert float(layer.absolute_clip_a().detach()) == pytest.approx(row.clip_a)


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(3, 16, 3, 2), True),
        (nn.Conv2d(3, 48, 1, 2), False),
        (nn.Conv2d(3, 48, 1), True),
        (nn.Conv2d(8, 48, 1, 2), True),
        (nn.Conv2d(16, 4, 3), False),
    ],
)
def test_channels_last_only_where_torch_does_not_corrupt_memory(layer, safe):
    network = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 8, 3), layer))
    assert fastest_layout(network, torch.device("cpu")) == (torch.channels_last if safe else torch.contiguous_format)
    assert fastest_layout(network, torch.device("cuda")) == torch.channels_last


def test_an_addition_and_a_layer_that_read_one_tensor_have_one_quantizer_where_the_layer_has_8_bits(tmp_path):
    network = network_of()
    with torch.no_grad():
        for number, layer in enumerate(network.layers.values()):
            layer.clip_a.fill_(1 + 0.1 * number)
    coarse = "layer1.1.conv1"
    found = freeze(network, {}, {coarse: 4})
    _, plan = restore(finished(tmp_path, network, found))
    rows = {row.name: row for row in plan.layers}
    readers = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    for name, add in zip(readers, plan.adds, strict=True):
        if name in ("layer2.0.conv1", "layer3.0.conv1"):
            continue  # what is added there comes out of a convolution
        assert (plan.quantizers_of(add)[1] == plan.quantizer_a(rows[name])) == (name != coarse), name
    assert plan == found


def test_a_layer_may_go_to_float_and_come_back():
    network = small_network()
    names = list(network.layers)
    (x_NCHW, _) = next(image_batches(network, 1))
    whole = network.model.eval()(x_NCHW)
    plan = freeze(network, {names[3]: 32}, {names[3]: 32})
    row = plan.layer(names[3])
    assert (row.bits_w, row.bits_a, row.clip_w, row.clip_a, row.quantized) == (32, 32, None, None, False)
    layer = network.layers[names[3]]
    assert torch.equal(layer.quantized_weight(), layer.weight) and torch.equal(layer.quantized_input(x_NCHW), x_NCHW)
    in_float = network.model(x_NCHW)
    assert not torch.equal(whole, in_float)
    freeze(network, {names[3]: 8}, {names[3]: 8})
    assert torch.equal(network.model(x_NCHW), whole)
    apply_plan(network, plan)
    assert torch.equal(network.model(x_NCHW), in_float)
