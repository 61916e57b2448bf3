"""Transposed convolutions, from training to engines."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_deploy.backends.spec import BACKENDS, Backend
from sbs_deploy.export.dialects import DIALECTS
from sbs_deploy.export.slim import slim_network
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.folding import folded_affine
from sbs_train.stages.integers import equalise_filters
from sbs_train.stages.plans import plan_of_network
from tests.sbs_deploy.export.any_network import check, engine_details, exported, quantized_network


class Decoder(nn.Module):
    """Down, up with a BatchNorm, up to a given size, and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(12, 8, 2, stride=2, bias=False), nn.BatchNorm2d(8)
        self.odd = nn.ConvTranspose2d(16, 6, 3, stride=2, padding=1)
        self.grouped = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=3)
        self.out = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        y = F.relu(self.odd(torch.cat([x, y], 1), output_size=[15, 15]))
        return self.out(F.relu(self.grouped(y)))


EXAMPLE = Example.of(torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = Decoder()
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(-1, 1, 8))
        model.norm.running_var.uniform_(0.5, 2)
    return quantized_network(model, EXAMPLE)


def test_what_is_quantized(network: Network) -> None:
    layers = network.topology.layers
    assert list(network.layers) == ["stem", "down", "up", "odd", "out"]
    assert "several groups" in layers["grouped"].float_reason
    assert layers["up"].macs == 16 * 12 * 8 * 4 and network.batchnorms == {"up": "norm"}
    assert "transposed" in network.topology.reasons["down"] and not any(g.prunable for g in network.topology.groups)
    assert plan_of_network(network).layer("up").kind == "conv"


def test_with_open_quantizers_it_is_the_float_layer(network: Network) -> None:
    one, x = copy.deepcopy(network), EXAMPLE.random(1)
    for layer in one.layers.values():
        layer.set_bits(32, 32)
    plain = Decoder().eval()
    plain.load_state_dict(one.float_state())
    for model in (one.model, plain):
        x.run(model).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(one.model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-4)


def test_filters_are_equalised_along_the_output_channels(network: Network) -> None:
    one, x = copy.deepcopy(network), EXAMPLE.random(1)
    for layer in one.layers.values():
        layer.set_bits(32, 32)
    with torch.no_grad():
        one.model.up.weight.mul_(10 ** torch.linspace(-1, 1, 8).view(1, 8, 1, 1))
        expected = x.run(one.model)
        equalise_filters(one)
        torch.testing.assert_close(x.run(one.model), expected, rtol=1e-4, atol=1e-4)
    largest_O = one.model.up.weight.abs().amax((0, 2, 3))
    assert largest_O.max() / largest_O.min() < 1.001


def test_codes_and_scales_are_those_of_output_channels(network: Network) -> None:
    one = copy.deepcopy(network)
    exported(one, DIALECTS["ort"])
    plan = plan_of_network(one)
    layer = slim_network(one, plan).codes.layers["up"]
    factor_O = folded_affine(one.model.up, one.model.norm)[0].detach().numpy()
    codes_IOHW = one.layers["up"].weight_codes().numpy()
    np.testing.assert_array_equal(layer.codes.swapaxes(0, 1), codes_IOHW * np.sign(factor_O)[:, None, None].astype(int))
    step = plan.quantizer_w(plan.layer("up")).step
    np.testing.assert_allclose(layer.scale_O, np.abs(factor_O) * step, rtol=1e-5)


def test_the_graph_computes_what_the_network_does(network: Network) -> None:
    for dialect in DIALECTS.values():
        one = copy.deepcopy(network)
        graph = exported(one, dialect)
        check(graph, one.model, EXAMPLE.random(3), tolerance=2e-2)
        weights = {tensor.name: tensor for tensor in graph.graph.initializer}
        assert tuple(weights["up.weight"].dims) == (12, 8, 2, 2)
        assert tuple(weights["up.weight_scale"].dims) == (8,) and "odd.weight_scale" in weights


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
def test_engines_are_built(network: Network, backend: Backend, tmp_path: Path) -> None:
    details = engine_details(network, backend, tmp_path)
    assert details["quantized_layers"] == len(network.layers)
    own = {"up", "odd"}.intersection(details["float_layers"])
    assert own == (set() if backend.name == "openvino" else {"up", "odd"})  # the others have no integer kernel
