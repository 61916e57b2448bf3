"""Gates: surrogate gradients, cost, pruning, and that a closed gate opens again."""

import math

import pytest
import torch

from sbs_train.quant.gates import GateBank, hard_gate, selected_bits
from sbs_train.stages.search import search_space
from tests.sbs_train.small import small_network


def bank_of(network):
    return GateBank(search_space(network))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_hard_gate_uses_the_derivative_of_a_sigmoid(temperature):
    margin = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    gate = hard_gate(margin, temperature)
    assert gate.tolist() == [0.0] * 5 + [1.0] * 4
    gate.sum().backward()
    expected = [
        temperature * math.exp(-temperature * m) / (1 + math.exp(-temperature * m)) ** 2 for m in margin.tolist()
    ]
    assert margin.grad.tolist() == pytest.approx(expected)


def test_selected_bits_are_nested():
    gates = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert selected_bits(gates, (2, 4, 8)).tolist() == [2, 2, 4, 8]


def test_bops_equal_a_sum_over_layers():
    network = small_network()
    bank = bank_of(network)
    with torch.no_grad():
        bank.alpha_w[:, 1] = 2.0  # closes the 8-bit gates: 4-bit weights
        bank.alpha_p[:] = 0.5
    gates = bank()
    kept = {group.id: 0.5 for group in bank.prunable}
    expected = 0.0
    for name, layer in network.layers.items():
        bits_w = 8 if name in network.topology.fixed else 4
        expected += layer.macs * kept.get(layer.group_in, 1) * kept.get(layer.group_out, 1) * bits_w * 8
    assert gates.cost.item() == pytest.approx(expected)


def test_cost_closes_gates_and_a_better_loss_opens_them_again():
    network = small_network()
    bank = bank_of(network)
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.log(bank().cost).backward()
        optimizer.step()
        bank.clamp()
    cheap = bank()
    assert cheap.bits_w_L[1].item() == 2 and cheap.fraction_P.max().item() < 1
    for _ in range(250):
        optimizer.zero_grad()
        gates = bank()
        (-torch.log(gates.cost)).backward()
        optimizer.step()
        bank.clamp()
    assert bank().bits_w_L[1].item() == 8 and bank().fraction_P.min().item() == 1


def test_no_group_is_pruned_beyond_the_ratio():
    network = small_network(max_pruning_ratio=0.5, group_size=2)
    bank = bank_of(network)
    with torch.no_grad():
        bank.alpha_p.fill_(1.0)
    bank.clamp()
    assert bank().fraction_P.min().item() == 0.5


def test_the_least_important_filters_go_first():
    network = small_network(group_size=2)
    bank = bank_of(network)
    group = bank.prunable[0]
    with torch.no_grad():
        weight = network.layers[group.producers[0]].weight
        weight[2:4] *= 0.01
        bank.alpha_p[0] = 0.3
    bank()
    mask = network.layers[group.consumers[0]].mask_in
    assert mask.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]


def test_norm_metric_sends_gradient_to_pruned_filters():
    network = small_network(pruning_metric="norm")
    bank = bank_of(network)
    with torch.no_grad():
        bank.alpha_p.fill_(1.0)  # beyond any norm: every gate of the layer is closed
    gates = bank()
    gates.fraction_P.sum().backward()
    name = bank.prunable[0].producers[0]
    assert network.layers[name].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("mode", "searched", "pruned"), [("joint", 20, 9), ("quantize", 20, 0), ("prune", 0, 9)])
def test_modes(mode, searched, pruned):
    bank = bank_of(small_network(mode))
    assert (len(bank.searched), len(bank.prunable)) == (searched, pruned)


def test_first_and_last_layer_keep_8_bits():
    network = small_network()
    bank = bank_of(network)
    with torch.no_grad():
        bank.alpha_w.fill_(4.0)
        bank.alpha_a.fill_(4.0)
    bits = bank().bits_w_L
    assert (bits[0], bits[-1]) == (8, 8) and set(bits[1:-1].tolist()) == {2.0}
