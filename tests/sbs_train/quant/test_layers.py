"""Swapped layers against the float layers they replace and against NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import make_grid
from sbs_train.inputs.models import CifarResNet
from sbs_train.quant.layers import SBSConv2d, sbs_layers, swap_layers


def quantized_conv(**kwargs):
    model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, **kwargs))
    layer = swap_layers(model)["0"]
    layer.set_grids(make_grid("weight", (2, 4, 8)), make_grid("unsigned", (2, 4, 8)))
    return layer


def test_swapping_changes_no_value_and_keeps_the_weights():
    torch.manual_seed(0)
    model = CifarResNet(1, 8, 3, 10).eval()
    x, parameters = torch.randn(2, 3, 16, 16), dict(model.named_parameters())
    before = model(x)
    layers = swap_layers(model)
    assert torch.equal(model(x), before)
    assert set(layers) == {name for name, _ in sbs_layers(model)} and "layer1.0.conv1" in layers
    for name, parameter in parameters.items():
        assert dict(model.named_parameters())[name] is parameter


def test_weights_and_input_are_on_their_grids():
    layer = quantized_conv()
    layer.set_bits(4, 2)
    with torch.no_grad():
        layer.clip_a.fill_(2.0)
        layer.clip_w.fill_(3.0)
    x = torch.rand(2, 8, 5, 5) * 4
    clip = 3.0 * layer.weight.detach().std().item()
    codes_w = make_grid("weight", (2, 4, 8)).level(4).quantize(layer.weight.detach().numpy(), clip)
    codes_x = make_grid("unsigned", (2, 4, 8)).level(2).quantize(x.numpy(), 2.0)
    expected = F.conv2d(
        torch.tensor(codes_x * 2.0 / 3), torch.tensor(codes_w * clip / 15), layer.bias.detach().double(), padding=1
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.weight_codes().numpy(), codes_w)


def test_masking_weights_equals_masking_the_input():
    layer = quantized_conv()
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0])
    x = torch.rand(2, 8, 5, 5)
    expected = layer(x * mask.view(1, -1, 1, 1))
    layer.mask_in = mask
    torch.testing.assert_close(layer(x), expected)


def test_a_mask_gets_the_gradient_of_its_channel():
    layer = quantized_conv()
    x, mask = torch.rand(2, 8, 5, 5), torch.ones(8, requires_grad=True)
    layer.mask_in = mask
    layer(x).square().sum().backward()
    step = 1e-2
    with torch.no_grad():
        for channel in (0, 5):
            shift = torch.zeros(8)
            shift[channel] = step
            high, low = (
                layer.__class__.forward(_with_mask(layer, mask + s), x).square().sum() for s in (shift, -shift)
            )
            torch.testing.assert_close(mask.grad[channel], (high - low) / (2 * step), rtol=1e-3, atol=1e-3)


def _with_mask(layer, mask):
    layer.mask_in = mask.detach()
    return layer


def test_depthwise_layers_ignore_the_mask():
    layer = swap_layers(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))["0"]
    assert layer.kind == "depthwise"
    x = torch.rand(1, 4, 6, 6)
    expected = layer(x)
    layer.mask_in = torch.tensor([1.0, 0, 1, 0])
    assert torch.equal(layer(x), expected)


def test_subclasses_are_left_alone():
    class Special(nn.Conv2d):
        pass

    model = nn.Sequential(Special(3, 3, 1))
    assert not swap_layers(model) and not isinstance(model[0], SBSConv2d)


def test_metrics_follow_the_error_of_the_coarser_level():
    layer = quantized_conv()
    layer.gather_metrics = True
    with torch.no_grad():
        layer.clip_a.fill_(1.0)
        for _ in range(60):
            layer(torch.rand(8, 8, 16, 16))
    # Even values in 0..1: the mean error at every level is one unit.
    torch.testing.assert_close(layer.metric_a, torch.ones(2), rtol=0.05, atol=0)


def test_paper_grid_has_no_int8_codes_at_8_bits():
    layer = swap_layers(nn.Sequential(nn.Conv2d(2, 2, 1)))["0"]
    layer.set_grids(make_grid("weight", (2, 4, 8), "paper"), make_grid("unsigned", (2, 4, 8), "paper"))
    with pytest.raises(SbsError, match="--grid int8"):
        layer.weight_codes()
    layer.set_bits(4, 8)
    assert layer.weight_codes().abs().max() <= 15
