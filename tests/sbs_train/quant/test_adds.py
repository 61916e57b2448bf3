"""Residual additions: found wherever they are written, quantized exactly, left alone elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.grid import make_grid
from sbs_train.inputs.models import CifarResNet
from sbs_train.quant.adds import ResidualAdds, count_additions, intercept_additions


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
    assert count_additions(Sum(how), torch.randn(1, 2, 3, 3)) == found


@pytest.mark.parametrize("how", ["+", "+="])
def test_operands_are_on_their_grids(how):
    model, x = Sum(how), torch.randn(2, 2, 3, 3)
    adds = ResidualAdds(1)
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
    model, adds = Sum("+"), ResidualAdds(1)
    adds.install(model)
    adds.enable([(True, False)])
    with torch.no_grad():
        adds.clip_lhs.fill_(0.1)
    x = torch.randn(2, 2, 3, 3)
    (model(x) - 2 * x).square().sum().backward()
    assert adds.clip_lhs.grad.item() < 0  # a wider range would fit better


def test_resnets_have_an_addition_a_block():
    assert count_additions(CifarResNet(3, 4, 1, 10).eval(), torch.zeros(1, 1, 8, 8)) == 9


def test_interception_ends_with_the_forward_pass_even_if_it_fails():
    model, adds = Sum("+"), ResidualAdds(1)
    adds.install(model)
    adds.enable([(True, False)])
    with pytest.raises(TypeError):
        model("no tensor")
    calls = []
    with intercept_additions(lambda i, a, b: calls.append(i) or (a, b)):
        pass
    a = torch.ones(1, 1, 2, 2)
    assert torch.equal(a + a, 2 * a) and not calls


def test_they_are_saved_with_the_model():
    model = CifarResNet(1, 4, 1, 10)
    ResidualAdds(3).install(model)
    assert model.state_dict()["residual_clip_lhs"].shape == (3,)
