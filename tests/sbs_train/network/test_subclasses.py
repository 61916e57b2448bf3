"""Subclasses that compute what their parent does are quantized, all others stay in float."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.example import Example
from sbs_train.network.structure import structure_of
from sbs_train.network.subclasses import computes_its_parent


class Named(nn.Conv2d):
    """Adds nothing to a forward pass."""

    def reset(self):
        return "reset"


class Same(nn.Conv2d):
    """Pads so that the output has the input's size, over the stride."""

    def forward(self, x):
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Module(nn.Conv2d):
    def __init__(self, *args, value=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.pad = nn.ConstantPad2d(1, value)

    def forward(self, input):
        return super().forward(self.pad(input))


class Standard(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


class Behind(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias).relu()


class Before(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(2 * x, self.weight, self.bias)


class InPlace(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x.mul_(2), self.weight, self.bias)


class Reflects(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.weight, self.bias)


class Called(nn.Conv2d):
    """Changes what its call returns, not what the layer computes inside."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Biased(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight)


class Rows(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "same"),
    [
        (Named(3, 4, 2), True),
        (Same(3, 4, 2, stride=2), True),
        (Module(3, 4, 2), True),
        (Module(3, 4, 2, value=1.0), False),
        (Standard(3, 4, 2), False),
        (Behind(3, 4, 2), False),
        (Before(3, 4, 2), False),
        (InPlace(3, 4, 2), False),
        (Reflects(3, 4, 2), False),
        (Called(3, 4, 2), True),
        (Biased(3, 4, 2), False),
        (Rows(6, 2), True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_a_subclass_computes(layer, same):
    assert computes_its_parent(layer, torch.randn(2, 3, 6, 6)) == same


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.named = Same(3, 8, 2, stride=2), Named(8, 8, 1)
        self.depthwise = Module(8, 8, 3, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.standard, self.called = Standard(8, 8, 1), Called(8, 8, 1)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.fc = Rows(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.depthwise(F.relu(self.named(F.relu(self.stem(x)))))))
        return self.fc(F.relu(self.computed(F.relu(self.standard(self.called(x))))).mean((2, 3)))


def test_a_network_of_subclasses():
    structure = structure_of(Network().eval(), Example.of(torch.zeros(2, 3, 8, 8)))
    layers = structure.topology.layers
    assert structure.topology.quantizable == ["stem", "named", "depthwise", "called", "fc"]
    assert layers["standard"].float_reason == "Standard computes something else than Conv2d"
    assert "computed, not stored" in layers["computed"].float_reason
    assert structure.batchnorms == {"depthwise": "norm"}
    assert layers["stem"].macs == 16 * 12 * 8
