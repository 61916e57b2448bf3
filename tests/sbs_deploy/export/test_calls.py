"""Layers that run several times, and layers that share their weights: one set of codes and one clip value for all."""

import copy
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_deploy.backends.onnxruntime.profile import integer_layers
from sbs_deploy.backends.products import saturating_layers, with_exact_products
from sbs_deploy.backends.spec import BACKENDS, Backend
from sbs_deploy.export.dialects import DIALECTS, ORT
from sbs_deploy.export.float_onnx import slim_onnx
from sbs_deploy.export.golden import tapped
from sbs_deploy.export.slim import slim_network
from sbs_deploy.graph.quantized import layer_counts
from sbs_deploy.graph.run import relative_error, run_graph
from sbs_deploy.legalise.factors import with_folded_factors
from sbs_deploy.measure.ledger.execution import executions
from sbs_deploy.validate.divergence import layers_of
from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network
from tests.sbs_deploy.export.any_network import check, engine_details, exported, quantized_network
from tests.sbs_deploy.export.networks import NAMES


class Pyramid(nn.Module):
    """A head shared over levels, two branches with the same weights, and a linear layer called for both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.out = nn.Conv2d(16, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        levels = [F.relu(self.norm(self.head(y))) for y in (x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4))]
        levels = [self.out(y) for y in levels]
        left, right = F.relu(self.left(levels[0])), F.relu(self.right(levels[0]))
        total = F.avg_pool2d(left, 2) + right + F.interpolate(levels[2], scale_factor=2) + levels[1]
        return self.fc(total.mean((2, 3))) - self.fc(left.mean((2, 3)))


CALLS = ["stem", "head", "head:1", "head:2", "out", "out:1", "out:2", "left", "left:1", "fc", "fc:1"]
EXAMPLE = Example.of(torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return quantized_network(Pyramid(), EXAMPLE)


def test_every_layer_is_quantized_and_all_calls_are_counted(network: Network) -> None:
    layers = network.topology.layers
    assert set(network.layers) == {"stem", "head", "out", "left", "fc"} == set(layers)
    assert {name: layer.calls for name, layer in layers.items()} == {"stem": 1, "head": 3, "out": 3, "left": 2, "fc": 2}
    # By hand: 64, 16 and 4 pixels of 72 x 16 weights; 64 and 16 pixels of 72 x 8.
    assert layers["head"].macs == 84 * 72 * 16 and layers["left"].macs == 80 * 72 * 8 and layers["fc"].macs == 80
    assert network.batchnorms == {"head": "norm"}


def test_device_models_are_refused(network: Network) -> None:
    config = replace(network.config, cost=Path("device.json"))
    with pytest.raises(SbsError, match="head runs 3 times a pass"):
        replace(network, config=config).device_cost()


def test_gradients_of_all_calls_reach_weights_and_clip_values(network: Network) -> None:
    """With identity quantizers the gradient is that of the float network."""
    x, model = EXAMPLE.random(1), Pyramid().eval()
    swapped = quantized_network(model, EXAMPLE)
    for layer in swapped.layers.values():
        layer.set_bits(32, 32)
    swapped.adds.enabled = False
    plain = Pyramid().eval()
    plain.load_state_dict(swapped.float_state())
    for one in (model, plain):
        one.zero_grad()
        x.run(one).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5)
    x.run(network.model).square().sum().backward()
    assert all(float(layer.clip_a.grad.abs()) > 0 for layer in network.layers.values())


@pytest.mark.parametrize("prune", [False, True])
def test_the_graph_computes_what_the_network_does(network: Network, prune: bool) -> None:
    network = copy.deepcopy(network)
    kept = {group.id: list(range(0, group.size, 2)) for group in network.topology.groups if group.prunable and prune}
    assert "shares its weights" in network.topology.reasons[network.topology.layers["left"].group_out]
    for dialect in DIALECTS.values():
        graph = exported(network, dialect, kept)
        check(graph, network.model, EXAMPLE.random(3), tolerance=2e-2)
        codes = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
        weights = [name for name in codes if name.endswith(".weight")]
        assert sorted(weights) == sorted(f"{name}.weight" for name in network.layers)
        assert sorted(name for name, _ in layers_of(graph)) == sorted(CALLS)
        assert len({node.name for node in graph.graph.node}) == len(graph.graph.node)


def test_every_call_has_a_tap_that_its_node_computes(network: Network) -> None:
    network, x = copy.deepcopy(network), EXAMPLE.random(3)
    graph = exported(network, ORT, names=NAMES)
    taps, nodes = tapped(network, plan_of_network(network), x), dict(layers_of(graph))
    inputs = {"input": x.args[0].numpy()}
    assert taps.keys() == nodes.keys()
    found = run_graph(graph, [node.output[0] for node in nodes.values()], inputs, "none")
    for name, node in nodes.items():
        assert relative_error(found[node.output[0]], taps[name].numpy()) < 1e-2, name


def test_what_reads_the_graph_knows_that_a_layer_has_several_nodes(network: Network) -> None:
    network, x = copy.deepcopy(network), EXAMPLE.random(3)
    graph = exported(network, ORT)
    assert saturating_layers(graph)
    check(with_exact_products(graph), network.model, x, tolerance=2e-2)
    found = executions(graph, list(network.layers))
    assert {name: one.macs for name, one in found.items()} == {
        name: layer.macs for name, layer in network.topology.layers.items()
    }
    assert found["head"].weights == 72 * 16 and found["head"].inputs == 84 * 8


def test_a_layer_of_several_nodes_is_in_integers_if_all_of_them_are() -> None:
    def kernel(name: str) -> onnx.NodeProto:
        return onnx.helper.make_node("QLinearConv", ["x", "head.weight"], [f"{name}/y"], name)

    wanted = {"head": "head.weight", "head:1": "head.weight"}
    for count, left in ((0, ["head"]), (1, ["head"]), (2, [])):
        optimized = onnx.ModelProto()
        optimized.graph.node.extend(kernel(f"fused{index}") for index in range(count))
        counts = layer_counts(wanted, integer_layers(optimized, wanted))
        assert counts == {"quantized_layers": 1, "float_layers": left}


class Scaled(nn.Module):
    """A constant factor behind one call of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.register_buffer("factor", torch.tensor([0.5, -2.0, 3.0]).view(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(F.relu(self.conv(x) * self.factor)))


def test_a_factor_behind_one_call_is_not_folded() -> None:
    torch.manual_seed(0)
    network = quantized_network(Scaled(), EXAMPLE)
    plan = plan_of_network(network)
    apply_plan(network, plan)
    apply_clips(network, plan)
    slim = slim_network(network, plan)
    before = slim_onnx(slim, EXAMPLE)
    after, codes = with_folded_factors(before, slim.codes)
    assert after.SerializeToString() == onnx_ir.to_proto(onnx_ir.from_proto(before)).SerializeToString()
    assert codes.layers["conv"] is slim.codes.layers["conv"]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
def test_engines_are_built(network: Network, backend: Backend, tmp_path: Path) -> None:
    details = engine_details(network, backend, tmp_path)
    assert details["quantized_layers"] == len(network.layers)
    assert set(details["float_layers"]) <= set(network.layers)
