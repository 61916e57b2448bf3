"""Costs against published totals, groups against the structure of the networks."""

import pytest
import torch
from torch import nn

from sbs_train.contract.plan import ModelSpec
from sbs_train.example import Example
from sbs_train.inputs.models import build_model
from sbs_train.network.channels import topology_of


def image(channels=3, size=32):
    return Example.of(torch.zeros(2, channels, size, size))


@pytest.mark.parametrize(("name", "giga"), [("resnet20", 41.80), ("resnet56", 128.8)])
def test_bops_of_cifar_resnets_match_the_publication(name, giga):
    model = build_model(ModelSpec(name=name, arguments={"width": 16, "num_classes": 100}), 3)
    assert topology_of(model, image()).total_macs * 1024 / 1e9 == pytest.approx(giga, rel=1e-3)


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1857.6), ("mobilenet_v2", 308.0)])
def test_bops_of_torchvision_models_match_the_publication(name, giga):
    import torchvision

    topology = topology_of(torchvision.models.get_model(name), image(size=224))
    assert topology.total_macs * 1024 / 1e9 == pytest.approx(giga, rel=1e-3)


def test_only_filters_inside_blocks_are_prunable():
    topology = topology_of(
        build_model(ModelSpec(name="resnet20", arguments={"width": 8, "num_classes": 10}), 1), image(1, 16)
    )
    prunable = {g.id for g in topology.groups if g.prunable}
    assert prunable == {f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in (0, 1, 2)}
    stream = next(g for g in topology.groups if g.id == "conv1")
    assert "layer1.2.conv2" in stream.producers and "layer2.0.downsample.0" in stream.consumers
    assert "residual stream" in topology.reasons["conv1"]
    assert topology.fixed == {"conv1", "fc"}


def test_of_mobilenetv2_only_expanded_channels_are_prunable():
    topology = topology_of(
        build_model(ModelSpec(name="mobilenetv2", arguments={"width": 16, "num_classes": 10}), 1), image(1, 16)
    )
    prunable = {g.id: g for g in topology.groups if g.prunable}
    # Block 1 does not expand: its depthwise layer has the stem's channels.
    assert set(prunable) == {f"features.{block}.conv.0.0" for block in range(2, 18)}
    for block in range(2, 18):
        expand, depthwise, project = (f"features.{block}.conv.{place}" for place in ("0.0", "1.0", "2"))
        assert prunable[expand].producers == [expand, depthwise] and prunable[expand].consumers == [depthwise, project]
    for outside in ("features.0.0", "features.1.conv.1", "features.17.conv.2", "features.18.0"):
        assert "not inside a block" in topology.reasons[outside]
    assert "residual stream" in topology.reasons["features.2.conv.2"]
    assert topology.fixed == {"features.0.0", "classifier.1"}


def test_a_depthwise_layer_costs_one_product_a_channel_and_tap():
    topology = topology_of(
        build_model(ModelSpec(name="mobilenetv2", arguments={"width": 32, "num_classes": 10}), 3), image()
    )
    macs = {name.removeprefix("features."): layer.macs for name, layer in topology.layers.items()}
    assert macs["2.conv.0.0"] == 16 * 96 * 32 * 32
    assert macs["2.conv.1.0"] == 9 * 96 * 32 * 32
    assert macs["2.conv.2"] == 96 * 24 * 32 * 32
    assert macs["4.conv.1.0"] == 9 * 144 * 16 * 16


def test_networks_inside_a_wrapper_keep_their_blocks():
    inner = build_model(ModelSpec(name="mobilenetv2", arguments={"width": 8, "num_classes": 10}), 3)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = inner

        def forward(self, x):
            return self.network(x)

    prunable = [{g.id for g in topology_of(m, image(size=8)).groups if g.prunable} for m in (inner, Wrapper())]
    assert prunable[1] == {f"network.{name}" for name in prunable[0]}


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_every_layer_has_a_group_on_both_sides(name):
    topology = topology_of(
        build_model(ModelSpec(name=name, arguments={"width": 8, "num_classes": 10}), 1), image(1, 16)
    )
    ids = {g.id for g in topology.groups}
    for name, layer in topology.layers.items():
        assert layer.group_in in ids and layer.group_out in ids, name
    assert next(iter(topology.layers.values())).group_in == "input"


def test_depthwise_layers_share_the_group_of_their_producer():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )  # fmt: skip
    topology = topology_of(model, image(size=8))
    group = next(g for g in topology.groups if g.id == "0")
    assert group.prunable and group.producers == ["0", "2"] and group.consumers == ["2", "4"]
    flattened = next(g for g in topology.groups if g.id == "4")
    assert not flattened.prunable and "flattened" in topology.reasons["4"]


def test_the_model_is_left_as_it_was():
    model = build_model(ModelSpec(name="resnet20", arguments={"width": 8, "num_classes": 10}), 1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    topology_of(model, image(1, 16))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
