"""Residual additions: found wherever they are written, quantized exactly, left alone elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.grid import make_grid
from sbs_train.example import Example
from sbs_train.inputs.models import CifarResNet
from sbs_train.quant.adds import Addition, ResidualAdds, additions_of
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.quant.swapping import swap_layers

ALONE = [Addition(place=Place("", 0, 0))]


class Sum(nn.Module):
    """One addition, written in the way `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.bias = nn.Parameter(torch.ones(1, 2, 3, 3))

    def forward(self, x):
        a, b = x * 1.0, x.relu()
        if self.how == "+":
            return a + b
        if self.how == "+=":
            a += b
            return a
        if self.how == "torch.add":
            return torch.add(a, b)
        if self.how == "parameter":
            return a + self.bias
        if self.how == "broadcast":
            return a + b.mean((2, 3), keepdim=True)
        return a + 1.0


@pytest.mark.parametrize(
    ("how", "found"), [("+", 1), ("+=", 1), ("torch.add", 1), ("parameter", 0), ("broadcast", 0), ("number", 0)]
)
def test_additions_of_two_feature_maps_are_found(how, found):
    assert len(additions_of(Sum(how), Example.of(torch.randn(1, 2, 3, 3)))) == found


@pytest.mark.parametrize("how", ["+", "+="])
def test_operands_are_on_their_grids(how):
    model, x = Sum(how), torch.randn(2, 2, 3, 3)
    adds = ResidualAdds(ALONE)
    adds.install(model)
    assert torch.equal(model(x), x + x.relu())  # nothing happens before quantization is enabled
    with torch.no_grad():
        adds.clip_lhs.fill_(0.8)
        adds.clip_rhs.fill_(0.6)
    adds.enable([(True, False)])
    signed, unsigned = (make_grid(role, (8,)).levels[0] for role in ("signed", "unsigned"))
    expected = signed.quantize(x.numpy(), 0.8) * 0.8 / signed.steps
    expected = expected + unsigned.quantize(x.relu().numpy(), 0.6) * 0.6 / unsigned.steps
    np.testing.assert_allclose(model(x).detach().numpy(), expected, atol=1e-6)


def test_clip_values_learn():
    model, adds = Sum("+"), ResidualAdds(ALONE)
    adds.install(model)
    adds.enable([(True, False)])
    with torch.no_grad():
        adds.clip_lhs.fill_(0.1)
    x = torch.randn(2, 2, 3, 3)
    (model(x) - 2 * x).square().sum().backward()
    assert adds.clip_lhs.grad.item() < 0  # a wider range would fit better


def test_resnets_have_an_addition_a_block():
    assert len(additions_of(CifarResNet(3, 4, 1, 10).eval(), Example.of(torch.zeros(1, 1, 8, 8)))) == 9


class Block(nn.Module):
    """A convolution that reads what an addition reads too, with an operation between the two as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.other = how, nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = x.relu()
        y = self.conv(x)
        if self.how == "in place":
            x.mul_(2)
        return self.other(y + (x * 1 if self.how == "computed" else x))


@pytest.mark.parametrize(("how", "reader"), [("same", "conv"), ("in place", None), ("computed", None)])
def test_layers_that_read_an_operand_are_found(how, reader):
    model = Block(how)
    (found,) = additions_of(model, Example.of(torch.randn(2, 2, 3, 3)), {"conv": model.conv})
    assert found.readers == (None, reader)


def test_an_identity_connection_is_what_the_first_convolution_of_its_block_reads():
    model = CifarResNet(3, 4, 1, 10).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    found = additions_of(model, Example.of(torch.zeros(2, 1, 8, 8)), layers)
    assert [addition.readers[0] for addition in found] == [None] * 9
    names = {addition.readers[1] for addition in found if addition.readers[1] is not None}
    assert len(names) == 7 and all(name.endswith("conv1") for name in names)  # two have a convolution there


def test_an_operand_takes_the_clip_value_of_the_layer_that_reads_it_while_that_is_at_8_bits():
    model = Block("same")
    layers = swap_layers(model)
    adds = ResidualAdds(additions_of(model, Example.of(torch.randn(2, 2, 3, 3)), layers), layers)
    adds.install(model)
    grids = make_grid("weight", (4, 8)), make_grid("unsigned", (4, 8))
    for layer in layers.values():
        layer.set_grids(*grids)
    adds.enable([(True, False)], (grids[1], make_grid("signed", (4, 8))))
    with torch.no_grad():
        layers["conv"].clip_a.fill_(0.7)
        adds.clip_rhs.fill_(5)
    x = torch.rand(2, 2, 3, 3)
    _, rhs = adds.quantized(0, x, x)
    level = grids[1].level(8)
    np.testing.assert_allclose(rhs.detach(), level.quantize(x, 0.7) * 0.7 / level.steps, atol=1e-6)
    rhs.sum().backward()
    assert layers["conv"].clip_a.grad is not None and adds.clip_rhs.grad == 0

    adds.release()
    assert adds.clip(0, 1).item() == pytest.approx(0.7)
    layers["conv"].set_bits(8, 4)
    adds.release()
    with torch.no_grad():
        layers["conv"].clip_a.fill_(0.1)
    assert adds.clip(0, 1).item() == pytest.approx(0.7)  # from now on its own


def test_interception_ends_with_the_forward_pass_even_if_it_fails():
    model, adds = Sum("+"), ResidualAdds(ALONE)
    adds.install(model)
    adds.enable([(True, False)])
    with pytest.raises(TypeError):
        model("no tensor")
    calls = []
    with intercept_additions(model, lambda place, a, b: calls.append(place) or (a, b)):
        pass
    a = torch.ones(1, 1, 2, 2)
    assert torch.equal(a + a, 2 * a) and not calls


def test_they_are_saved_with_the_model():
    model = CifarResNet(1, 4, 1, 10)
    ResidualAdds(ALONE * 3).install(model)
    assert model.state_dict()["residual_clip_lhs"].shape == (3,)
