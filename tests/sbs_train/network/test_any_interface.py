"""Networks with several inputs and outputs, through everything that is found of a network."""

import pytest
import torch
from torch import nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.example import Example
from sbs_train.inputs.exportable import export_problem
from sbs_train.network.network import build_network
from sbs_train.network.structure import structure_of


class TwoInputs(nn.Module):
    """An image and a vector, joined; a map, a class and a number come out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.vector = nn.Linear(5, 8)
        self.wide = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image, *, vector):
        x = torch.relu(self.bn(self.stem(image)))
        x = torch.relu(self.outer(torch.relu(self.inner(x))) + x)
        v = self.narrow(torch.relu(self.wide(torch.relu(self.vector(vector)))))
        pooled = x.mean((2, 3)) * v
        return {"map": x, "scores": [self.head(pooled), pooled.sum(1)]}


def example(samples=2):
    return Example((torch.zeros(samples, 3, 6, 6),), {"vector": torch.zeros(samples, 5)})


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_structure_of_a_network_with_two_inputs(samples):
    structure = structure_of(TwoInputs().eval(), example(samples))
    topology = structure.topology
    assert set(topology.quantizable) == {"stem", "inner", "outer", "vector", "wide", "narrow", "head"}
    # By hand, for one sample.
    macs = {name: layer.macs for name, layer in topology.layers.items()}
    assert macs["stem"] == 36 * 27 * 8 and macs["inner"] == 36 * 72 * 12 and macs["vector"] == 40 and macs["head"] == 32
    assert structure.batchnorms == {"stem": "bn"} and len(structure.quantized_additions) == 1
    groups = {group.id: group for group in topology.groups}
    assert groups["inner"].prunable and groups["wide"].prunable
    assert groups["input"].consumers == ["stem"] and groups["input.5"].consumers == ["vector"]
    assert not groups["input.5"].prunable and not groups["stem"].prunable


def test_a_network_around_a_module_at_hand():
    model = TwoInputs()
    network = build_network(TrainConfig(), model, example(), ModelSpec(name="mine"))
    assert network.model is model and [one.name for one in network.inputs] == ["image", "vector"]
    assert [one.name for one in network.outputs] == ["map", "scores.0", "scores.1"]
    assert not export_problem(TwoInputs(), example())
    with pytest.raises(SbsError, match="two samples or more"):
        build_network(TrainConfig(), TwoInputs(), example(1), ModelSpec(name="mine"))


class Words(nn.Module):
    """Integers go in: no gradient leads to them."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.register_buffer("places", torch.randn(1, 6, 8))
        self.place = nn.Linear(8, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.words(ids) + self.place(self.places)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x), x.mean(1)


@pytest.mark.parametrize("ids", [torch.zeros(2, 6, dtype=torch.int64), torch.arange(12).view(2, 6)])
def test_a_network_that_takes_integers(ids):
    layers = structure_of(Words().eval(), Example.of(ids)).topology.layers
    assert [name for name, layer in layers.items() if layer.float_reason] == ["place"]
    assert layers["up"].macs == 6 * 8 * 16
