"""Range estimators against NumPy on the whole data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.ranges import Samples, min_max, mse, percentile


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


@pytest.mark.parametrize("steps", [3, 15, 127])
def test_mse_is_the_best_of_a_brute_force_scan(steps):
    x = np.abs(np.random.default_rng(1).normal(size=20_000)).astype(np.float32)
    clip = mse(watched(x), steps)

    def error(c):
        return np.mean((x - np.clip(np.round(x * steps / c), 0, steps) * c / steps) ** 2)

    assert error(clip) <= min(error(c) for c in np.linspace(0.1, x.max(), 500)) * 1.02
    assert clip < x.max() or steps > 15


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        watched([1.0, np.nan])


def test_nothing_seen_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile(Samples(), 99)
