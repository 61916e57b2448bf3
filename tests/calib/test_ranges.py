"""Range estimators against NumPy on the whole data."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.ranges import Samples, min_max, mse, mse_range, percentile


def watched(*batches):
    samples = Samples()
    for batch in batches:
        samples.update(np.asarray(batch, np.float32))
    return samples


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), min_size=1, max_size=5))
def test_extremes_are_exact(batches):
    samples, flat = watched(*batches), np.concatenate([np.asarray(b, np.float32) for b in batches])
    assert min_max(samples) == np.abs(flat).max()
    assert samples.signed == bool((flat < 0).any())
    assert percentile(samples, 100) == np.abs(flat).max()


def test_percentile_of_a_subsample_is_close():
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 32)).astype(np.float32)
    assert percentile(watched(*x), 99.9) == pytest.approx(np.percentile(np.abs(x), 99.9), rel=0.01)


def test_percentile_ignores_zeros_where_nothing_else_is_left():
    x = np.zeros(100_000, np.float32)
    x[:10] = 5.0
    assert percentile(watched(x), 99.9) == 5.0


def squared_error(x, clip, codes, steps):
    """Of rounding every value to the nearest of `codes * clip / steps`, by comparing it with all of them."""
    levels = np.asarray(codes) * clip / steps
    return np.mean(np.min((x[:, None] - levels[None, :]) ** 2, 1))


@pytest.mark.parametrize(
    ("steps", "odd"), [(3, False), (7, False), (15, False), (120, False), (1, True), (3, True), (15, True)]
)
@pytest.mark.parametrize("tail", [1.0, 20.0])
def test_mse_is_the_best_of_a_brute_force_scan(steps, odd, tail):
    x = np.abs(np.random.default_rng(1).normal(size=3000)).astype(np.float32)
    x[0] = tail  # an outlier must not make the trials coarse
    clip = mse(watched(x), steps, odd=odd)
    codes = [code for code in range(steps + 1) if code % 2 or not odd]
    trials = {c: squared_error(x, c, codes, steps) for c in np.linspace(0.2, max(tail, 4.0), 400)}
    assert squared_error(x, clip, codes, steps) <= min(trials.values()) * 1.06  # its own trials lie 6 % apart
    assert clip < x.max() or steps > 15


def test_mse_of_a_signed_tensor_is_that_of_its_magnitudes():
    x = np.random.default_rng(2).normal(size=5000)
    assert mse(watched(x), 15, odd=True) == mse(watched(np.abs(x)), 15, odd=True)


@pytest.mark.parametrize(("bits", "step", "error"), [(2, 0.9957, 0.1188), (4, 0.3352, 0.01154)])
def test_mse_finds_the_optimum_uniform_quantizer_of_a_gaussian(bits, step, error):
    # Max (1960), "Quantizing for minimum distortion", table II: 4 and 16 output levels, step and error for sigma = 1.
    x = np.array([NormalDist().inv_cdf(p) for p in (np.arange(20_000) + 0.5) / 20_000])
    steps = 2**bits - 1  # the weight grid: odd multiples of clip / steps, so two of them apart
    clip = mse(watched(x), steps, odd=True)
    assert 2 * clip / steps == pytest.approx(step, rel=0.03)  # trials lie 6 % apart
    codes = np.arange(-steps, steps + 1, 2)
    assert squared_error(x, clip, codes, steps) == pytest.approx(error, rel=0.01)


def test_mse_of_zeros_is_zero():
    assert mse(watched(np.zeros(100)), 15) == 0


@settings(max_examples=30, deadline=None)
@given(
    steps=st.sampled_from([(1, False), (3, True), (15, True), (15, False), (120, False)]),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 100),
)
def test_mse_scales_with_its_values_and_stays_within_them(steps, scale, seed):
    x = np.random.default_rng(seed).normal(size=300).astype(np.float32)
    clip, scaled = (mse(watched(values), steps[0], odd=steps[1]) for values in (x, x * np.float32(scale)))
    assert 0 < clip <= np.abs(x).max() * (1 + 1e-6)
    assert scaled == pytest.approx(clip * scale, rel=0.07)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        watched([1.0, np.nan])


def test_nothing_seen_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile(Samples(), 99)


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-3, 3), scale=st.floats(1e-6, 1e6), steps=st.sampled_from([15, 255]), seed=st.integers(0, 100))
def test_no_range_of_a_grid_of_trials_rounds_better(shift, scale, steps, seed):
    x = ((np.random.default_rng(seed).normal(size=500) + shift) * scale).astype(np.float32)
    low, high = mse_range(watched(x), steps)
    assert min(x.min(), 0) * (1 + 1e-6) <= low <= 0 <= high <= max(x.max(), 0) * (1 + 1e-6)

    def error(low, high):
        step = (high - low) / steps
        return np.mean((x - np.clip(np.rint(x / step), round(low / step), round(high / step)) * step) ** 2)

    trials = [(a * min(x.min(), 0), b * max(x.max(), 0)) for a in (1, 0.8, 0.6, 0.4) for b in (1, 0.8, 0.6, 0.4)]
    assert error(low, high) <= 1.3 * min(error(*pair) for pair in trials if pair[0] < pair[1])


def test_the_range_of_zeros_is_empty():
    assert mse_range(watched(np.zeros(100)), 255) == (0, 0)
