"""The scale of weights: the deviation of ordinary ones, and something sound for all others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calib import ranges
from sbs_train.contract.config import CalibrateConfig
from sbs_train.contract.grid import make_grid
from sbs_train.quant.scale import centre, weight_scale
from sbs_train.quant.swapping import swap_layers
from sbs_train.stages.clips import weight_clips

KINDS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "constant": lambda rng, n: np.full(n, rng.uniform(0.1, 1)),
    "nearly constant": lambda rng, n: 1 + 1e-6 * rng.normal(0, 1, n),
    "zeros": lambda rng, n: np.zeros(n),
    "one that is not zero": lambda rng, n: np.eye(1, n, rng.integers(n))[0],
    "an outlier": lambda rng, n: np.concatenate([rng.normal(0, 1, n - 1), [1e4]]),
    "of many sizes": lambda rng, n: rng.normal(0, 1, n) * 10.0 ** rng.uniform(-8, 0, n),
    "shifted": lambda rng, n: rng.normal(3, 0.1, n),
}


def weights(kind, n, size, seed):
    """float32 of magnitude `size`."""
    values = KINDS[kind](np.random.default_rng(seed), n)
    return torch.tensor(values * size, dtype=torch.float32)


def layer_of(values, standardise="scale", family="int8"):
    """A convolution of one pixel with those weights."""
    conv = nn.Conv2d(len(values), 1, 1, bias=False)
    conv.weight.data.copy_(values.view(1, -1, 1, 1))
    (layer,) = swap_layers(nn.Sequential(conv)).values()
    layer.standardise = standardise
    grid = make_grid("weight", (2, 4, 8), family)
    layer.set_grids(grid, make_grid("unsigned", (2, 4, 8), family))
    return layer


@pytest.mark.parametrize("n", [2, 9, 144, 5000])
def test_of_ordinary_weights_it_is_the_deviation_to_the_bit(n):
    for seed in range(50):
        weight = weights("normal", n, 0.07, seed) if n > 2 else torch.tensor([0.3, -0.1 * seed])
        assert torch.equal(weight_scale(weight), weight.std())
        assert torch.equal(centre(weight), weight.mean())


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.sampled_from([1, 2, 3, 27, 400]),
    power=st.integers(-20, 20),
    seed=st.integers(0, 99),
    method=st.sampled_from(["mse", "min-max"]),
    standardise=st.sampled_from(["scale", "mean-std"]),
)
def test_eight_bits_hold_weights_of_any_kind(kind, n, power, seed, method, standardise):
    values = weights(kind, n, 10.0**power, seed)
    layer = layer_of(values, standardise)
    clips = weight_clips(layer, layer.grid_w, CalibrateConfig(method=method))
    layer.set_clips(clips, [1.0] * 3)
    wanted, found = layer.centred_weight().detach(), layer.quantized_weight().detach()
    largest = float(wanted.abs().max())
    assert torch.isfinite(found).all() and float(found.abs().max()) <= 2 * max(largest, 1e-22)
    error = (found - wanted).double()
    if method == "mse":
        # As good as the range allows: no value is off by more than half a step of the whole range, on average.
        assert float(error.square().mean().sqrt()) <= 1.01 * largest / 240 + 1e-22
    else:
        # 3 deviations of one weight among many cut it off; of a mean, half of it at least.
        assert float(error.abs().max()) <= largest
    if kind == "constant" and method == "mse":
        torch.testing.assert_close(found.flatten(), values, rtol=1e-6, atol=0)
    y = layer(torch.ones(1, n, 1, 1))
    y.sum().backward()
    assert torch.isfinite(layer.weight.grad).all() and torch.isfinite(layer.clip_w.grad)


def test_weights_of_one_value_are_not_centred_away():
    for values in (torch.full((9,), 0.25), torch.tensor([0.7])):
        assert torch.equal(layer_of(values, "mean-std").centred_weight().flatten().detach(), values)


def test_the_scale_follows_weights_without_a_jump():
    direction = weights("normal", 100, 1, 0)
    shares = np.linspace(0, 5, 2001)
    scales = [float(weight_scale(1 + share * direction)) for share in shares]
    assert np.abs(np.diff(scales)).max() < 2 * (shares[1] - shares[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_zero_train_and_their_clip_value_follows(bits):
    layer = layer_of(torch.zeros(16))
    layer.set_clips(weight_clips(layer, layer.grid_w, CalibrateConfig()), [1.0] * 3)
    layer.set_bits(bits, 8)
    wanted = weights("normal", 16, 0.5, 3)
    x = torch.rand(64, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(300):
        y = (layer(x) - nn.functional.conv2d(x, wanted.view(1, -1, 1, 1))).square().mean()
        optimizer.zero_grad()
        y.backward()
        optimizer.step()
        losses.append(float(y.detach()))
    assert min(losses[-20:]) < {4: 0.5, 8: 0.01}[bits] * losses[0]
    assert float(layer.absolute_clip_w().detach()) > 0.1


@settings(max_examples=30, deadline=None)
@given(power=st.integers(-30, 30), kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99))
def test_the_best_clip_value_scales_with_the_values(power, kind, seed):
    def best(size):
        samples = ranges.Samples()
        samples.update(weights(kind, 100, size, seed).numpy())
        return ranges.mse(samples, 120)

    assert best(2.0**power) == pytest.approx(best(1.0) * 2.0**power, rel=1e-6)
