"""A gate multiplies: what it gates is pruned like any channels inside a block. What is added up is a stream."""

import pytest
import torch
from torch import nn

from sbs_train.contract.plan import ModelSpec
from sbs_train.example import Example
from sbs_train.inputs.models import build_model
from sbs_train.network.channels import topology_of
from tests.sbs_train.gated import KINDS, Gated


def image(size):
    return Example.of(torch.zeros(2, 3, size, size))


@pytest.mark.parametrize("kind", KINDS)
def test_gated_channels_are_prunable_and_added_ones_are_a_stream(kind):
    torch.manual_seed(0)
    topology = topology_of(Gated(kind), image(12))
    groups = {group.id: group for group in topology.groups}
    for block in ("blocks.0", "blocks.1"):
        group = groups[f"{block}.expand"]
        if KINDS[kind] is not None:
            assert group.prunable == KINDS[kind], topology.reasons.get(group.id)
        if group.prunable:
            assert f"{block}.project" in group.consumers
    stream = topology.reasons["stem.0"]
    assert "residual stream: 3 layers write to it" in stream
    streams = {name for name, reason in topology.reasons.items() if "residual stream" in reason}
    added = {f"blocks.{i}.expand" for i in (0, 1)} if kind == "two branches" else set()
    assert streams == {"stem.0"} | added


class Sums(nn.Module):
    """Two blocks of two branches each, inside one module: a stream of its own, within a block."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.inner = Inner()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.inner(self.first(x)).mean((2, 3)))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Conv2d(8, 8, 1) for _ in range(4))

    def forward(self, x):
        y = self.a(x)
        y = y + self.b(y).relu()
        y = y + self.c(y).relu()
        return self.out(y)


def test_a_stream_inside_a_block_is_a_stream():
    topology = topology_of(Sums(), image(8))
    assert "residual stream: 3 layers write to it" in topology.reasons["inner.a"]


@pytest.mark.parametrize(
    ("name", "expanded"),
    [
        ("torchvision:mobilenet_v3_small", [f"features.{i}.block.0.0" for i in range(2, 12)]),
        ("torchvision:regnet_y_400mf", []),
        ("timm:legacy_seresnet18", [f"layer1.{i}.conv1" for i in (0, 1)]),
    ],
)
def test_networks_of_libraries(name, expanded):
    pytest.importorskip(name.partition(":")[0])
    topology = topology_of(
        build_model(ModelSpec(name=name, arguments={"width": 16, "num_classes": 10}), 3, size=(64, 64)), image(64)
    )
    prunable = {group.id for group in topology.groups if group.prunable}
    assert set(expanded) <= prunable
    for reason in topology.reasons.values():
        assert "follow" not in reason and "computes something else" not in reason
