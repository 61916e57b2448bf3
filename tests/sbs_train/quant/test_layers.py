"""Swapped layers against the float layers they replace and against NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import make_grid
from sbs_train.inputs.models import CifarResNet
from sbs_train.quant.adds import ResidualAdds
from sbs_train.quant.clamping import clamp_clips
from sbs_train.quant.layers import sbs_layers
from sbs_train.quant.swapping import swap_layers


def quantized_conv(**kwargs):
    model = nn.Sequential(nn.Conv2d(8, 6, 3, **{"padding": 1, **kwargs}))
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


@pytest.mark.parametrize(("bits", "index"), [(2, 0), (4, 1), (8, 2)])
def test_every_bitwidth_has_its_own_clip_values(bits, index):
    layer, clips_w, clips_a = quantized_conv(), [1.5, 2.5, 3.5], [0.7, 1.1, 1.6]
    layer.set_clips(clips_w, clips_a)
    layer.set_bits(bits, bits)
    deviation = layer.weight.detach().std().item()
    assert layer.absolute_clip_w().item() == pytest.approx(clips_w[index] * deviation)
    assert layer.absolute_clip_a().item() == pytest.approx(clips_a[index])
    x = torch.rand(2, 8, 5, 5) * 2
    for found, values, clip, role in (
        (layer.quantized_weight(), layer.weight.detach(), clips_w[index] * deviation, "weight"),
        (layer.quantized_input(x), x, clips_a[index], "unsigned"),
    ):
        level = make_grid(role, (2, 4, 8)).level(bits)
        expected = level.quantize(values.numpy(), clip) * clip / level.steps
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_one_learned_factor_moves_the_clip_values_of_all_bitwidths():
    layer, x = quantized_conv(), torch.rand(2, 8, 5, 5) * 2
    layer.set_clips([1.5, 2.5, 3.0], [0.75, 1.0, 1.5])
    gradients = []
    for bits, own in ((2, 0.75), (8, 1.5)):
        layer.set_bits(8, bits)
        layer.zero_grad()
        layer.quantized_input(x).square().sum().backward()
        own_clip, level = torch.tensor(own, requires_grad=True), make_grid("unsigned", (2, 4, 8)).level(bits)
        # Straight through the rounding, by autograd.
        z = x / own_clip
        codes = torch.tensor(level.quantize(x.numpy(), own), dtype=torch.float32) / level.steps
        inside = z.detach() <= level.code_max / level.steps
        (torch.where(inside, z + (codes - z).detach(), codes) * own_clip).square().sum().backward()
        gradients.append(layer.clip_a.grad.item())
        assert gradients[-1] == pytest.approx(own_clip.grad.item() * own / 1.5, rel=1e-4)
    with torch.no_grad():
        layer.clip_a.mul_(1.1)
    for bits, own in ((2, 0.75), (4, 1.0), (8, 1.5)):
        layer.set_bits(8, bits)
        assert layer.absolute_clip_a().item() == pytest.approx(1.1 * own)


def test_clip_values_that_learned_to_be_negative_stay_positive():
    layer = quantized_conv()
    with torch.no_grad():
        layer.clip_a.fill_(-1.0)
        layer.clip_w.fill_(-1.0)
    clamp_clips([layer], ResidualAdds([]))
    assert 0 < layer.absolute_clip_a().item() < 1e-5 and 0 < layer.absolute_clip_w().item() < 1e-5
    assert torch.isfinite(layer(torch.rand(1, 8, 4, 4))).all()


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


@pytest.mark.parametrize("how", [{}, {"padding": "same"}, {"padding_mode": "reflect"}])
def test_metrics_follow_the_error_of_the_coarser_level(how):
    layer = quantized_conv(**how)
    layer.gather_metrics = True
    with torch.no_grad():
        layer.clip_a.fill_(1.0)
        layer.metric_a.fill_(9.0)
        for _ in range(80):
            layer(torch.rand(8, 8, 16, 16))
    # Even values in 0..1: the mean error at every level is one unit.
    torch.testing.assert_close(layer.metric_a, torch.ones(2), rtol=0.05, atol=0)
    clip = layer.absolute_clip_w().item()
    z = np.clip(layer.weight.detach().numpy() / clip, -1, 1)
    errors = [np.abs(z - level.quantize(z, 1.0) / level.steps).mean() for level in layer.grid_w.levels[:2]]
    np.testing.assert_allclose(layer.metric_w, errors / layer.unit_w.numpy(), rtol=0.01)
    layer.gather_metrics = False
    before = layer.metric_a.clone()
    layer(torch.zeros(8, 8, 16, 16))
    assert torch.equal(layer.metric_a, before)


def test_paper_grid_has_no_int8_codes_at_8_bits():
    layer = swap_layers(nn.Sequential(nn.Conv2d(2, 2, 1)))["0"]
    layer.set_grids(make_grid("weight", (2, 4, 8), "paper"), make_grid("unsigned", (2, 4, 8), "paper"))
    with pytest.raises(SbsError, match="--grid int8"):
        layer.weight_codes()
    layer.set_bits(4, 8)
    assert layer.weight_codes().abs().max() <= 15
