"""What cannot be quantized, intercepted or folded exactly is found before training, and left alone."""

import types

import pytest
import torch
from torch import nn

from sbs_train.contract import limits
from sbs_train.example import Example
from sbs_train.network.structure import structure_of

IMAGE = Example.of(torch.zeros(2, 3, 6, 6))


class Network(nn.Module):
    """A stem, its BatchNorm, a block that does something unusual, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def block(self, x):
        return self.c(x)

    def forward(self, x):
        return self.fc(self.block(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Patched(Network):
    def __init__(self):
        super().__init__()
        self.c.forward = types.MethodType(lambda c, x: c._conv_forward(x, c.weight, c.bias), self.c)


class OwnState(Network):
    def __init__(self):
        super().__init__()
        self.c.clip_a = nn.Parameter(torch.ones(()))


class ReadElsewhere(Network):
    def block(self, x):
        return self.c(x) * self.c.weight.mean()


class LooksAtTypes(Network):
    def block(self, x):
        return self.c(x) if type(self.c) is nn.Conv2d else x


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Patched, limits.LAYER_FAILS),
        (OwnState, limits.OWN_STATE.format(name="clip_a")),
        (ReadElsewhere, limits.WEIGHTS_READ),
        (LooksAtTypes, limits.LAYER_FAILS),
    ],
)
def test_a_layer_that_no_quantizer_can_stand_in_for_stays_in_float(network, reason):
    structure = structure_of(network().eval(), IMAGE)
    found = {name: layer.float_reason for name, layer in structure.topology.layers.items()}
    assert found == {"stem": "", "c": reason, "fc": ""}
    assert not any("c" in [*g.producers, *g.consumers] for g in structure.topology.groups if g.prunable)


class ChangedLater(Network):
    """What a quantizer keeps for the backward pass is changed in place; a float addition keeps nothing."""

    def block(self, x):
        y = self.c(x)
        z = y + x
        y.mul_(2)
        return z + y


def test_an_addition_whose_operand_is_changed_later_stays_in_float():
    additions = structure_of(ChangedLater(), IMAGE).additions
    assert [a.float_reason for a in additions] == [limits.ADDITION_FAILS, ""]


READERS = {
    "alone": lambda y, norm: norm(y),
    "shape": lambda y, norm: norm(y) * y.shape[1],
    "skip": lambda y, norm: norm(y) + y,
    "concatenation": lambda y, norm: torch.cat([norm(y), y], 1)[:, :4],
    "view": lambda y, norm: norm(y) * y.view(len(y), -1).mean(),
    "in place": lambda y, norm: norm(y.relu_()),
    "detached": lambda y, norm: norm(y) + y.detach().mean(),
    "twice": lambda y, norm: norm(norm(y)),
    "functional": lambda y, norm: norm(y) + nn.functional.conv2d(y, torch.ones(4, 4, 1, 1)),
}


@pytest.mark.parametrize("reads", READERS)
def test_a_batchnorm_is_folded_only_if_it_alone_reads_the_layer(reads):
    class Stem(Network):
        def forward(self, x):
            return self.fc(self.c(READERS[reads](self.stem(x), self.norm)).mean((2, 3)))

    folded = structure_of(Stem(), IMAGE).batchnorms
    assert folded == ({"stem": "norm"} if reads in ("alone", "shape") else {})


def test_a_hook_between_a_layer_and_its_batchnorm_is_kept():
    model = Network()
    model.stem.register_forward_hook(lambda m, x, y: y * 2)
    assert structure_of(model, IMAGE).batchnorms == {}


def test_a_layer_of_two_names_is_one():
    class Alias(Network):
        def __init__(self):
            super().__init__()
            self.also = nn.Sequential(self.c)

        def block(self, x):
            return self.also(x)

    layers = structure_of(Alias(), IMAGE).topology.layers
    assert list(layers) == ["stem", "c", "fc"] and not layers["c"].float_reason


class ByName(Network):
    """Calls every layer by the name that torch gives its input."""

    def block(self, x):
        return self.c(input=x) + x

    def forward(self, x):
        y = self.block(torch.relu(self.norm(input=self.stem(input=x))))
        return self.fc(input=y.mean((2, 3)))


class ByPosition(Network):
    def block(self, x):
        return self.c(x) + x


def test_a_layer_may_be_called_by_the_name_of_its_input():
    named, placed = ByName().eval(), ByPosition().eval()
    placed.load_state_dict(named.state_dict())
    assert structure_of(named, IMAGE) == structure_of(placed, IMAGE)
    assert structure_of(named, IMAGE).topology.quantizable == ["stem", "c", "fc"]
