"""Subclasses with a padding in front, and of no own forward, from training to engines."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from sbs_deploy.backends.spec import BACKENDS, Backend
from sbs_deploy.export.dialects import DIALECTS
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.folding import plain_copy
from sbs_train.quant.swapping import swap_layers
from tests.sbs_deploy.export.any_network import check, engine_details, exported, outputs_of, quantized_network
from tests.sbs_train.network.test_subclasses import Called, Module, Named, Rows, Same
from tests.sbs_train.network.test_subclasses import Network as Subclasses

EXAMPLE = Example.of(torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return quantized_network(Subclasses(), EXAMPLE)


def test_a_swapped_layer_keeps_its_class_and_what_it_computes() -> None:
    model, x = Subclasses().eval(), EXAMPLE.random(0)
    expected = x.run(model)
    layers = swap_layers(model, {"stem", "named", "depthwise", "called", "fc"})
    kinds = (Same, Named, Module, Called, Rows)
    assert all(isinstance(layer, kind) for layer, kind in zip(layers.values(), kinds, strict=False))
    assert model.named.reset() == "reset"
    for one in (model, copy.deepcopy(model)):
        torch.testing.assert_close(x.run(one), expected)
    assert "weight" not in vars(model.stem) and "stem.weight" in model.state_dict()
    plain = plain_copy(model)
    before, after = ([(name, type(m).__name__) for name, m in one.named_modules()] for one in (Subclasses(), plain))
    assert before == after and type(plain.stem) is Same and type(plain.fc) is Rows
    torch.testing.assert_close(x.run(plain), expected)


def test_a_step_trains_what_it_should(network: Network) -> None:
    torch.stack([network.example.random(1).run(network.model).square().mean()]).sum().backward()
    for layer in network.layers.values():
        assert float(layer.weight.grad.abs().sum()) > 0 and float(layer.clip_a.grad.abs()) > 0


def test_the_graph_computes_what_the_network_does(network: Network) -> None:
    for dialect in DIALECTS.values():
        one = copy.deepcopy(network)
        graph = exported(one, dialect)
        check(graph, one.model, EXAMPLE.random(3), tolerance=2e-2)
        assert {f"{name}.weight_scale" for name in one.layers} <= {tensor.name for tensor in graph.graph.initializer}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
def test_engines_are_built(network: Network, backend: Backend, tmp_path: Path) -> None:
    details = engine_details(network, backend, tmp_path)
    assert details["quantized_layers"] == len(network.layers)


@pytest.mark.slow
def test_a_network_of_timm_with_same_padding() -> None:
    torch.manual_seed(0)
    example = Example.of(torch.zeros(2, 3, 64, 64))
    network = quantized_network(timm.create_model("tf_efficientnet_lite0", num_classes=10), example)
    assert not [layer.float_reason for layer in network.topology.layers.values() if layer.float_reason]
    graph = exported(network, DIALECTS["ort"])
    single, double, errors, noise = network.model, copy.deepcopy(network.model).double(), [], []
    for seed in range(6):
        example = example.random(seed)
        with torch.no_grad():
            exact = example.to(torch.float64).run(double)
            noise.append(float((example.run(single) - exact).abs().max()))
        (found,) = outputs_of(graph, {"x": example.args[0]}).values()
        errors.append(float(np.abs(found - exact.numpy()).max()))
    # A value half-way between two codes falls either way, in PyTorch too, and 50 untrained layers spread it.
    assert min(errors) < 1e-4 * float(exact.abs().max()) and max(errors) < 2 * max(noise)
