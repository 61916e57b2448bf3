import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_deploy.measure.ledger.rank import agreement, kendall_tau

stats = pytest.importorskip("scipy.stats")
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=20)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_the_statistic_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    found = agreement(x.tolist(), y.tolist())
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found.kendall is None
        return
    assert found.kendall is not None
    assert found.kendall.value == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@given(PAIRS, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_are_repetitions(pairs: list[tuple[int, int]], seed: int) -> None:
    """A resample kept as counts gives what the layers themselves, repeated, give."""
    x, y = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    drawn = np.random.default_rng(seed).integers(0, len(x), len(x))
    counts = np.bincount(drawn, minlength=len(x)).astype(np.float64)[None]
    expected = kendall_tau(x[drawn], y[drawn], np.ones((1, len(x))))
    np.testing.assert_allclose(kendall_tau(x, y, counts), expected, atol=1e-12)


def test_the_interval_shrinks_with_layers_and_holds_the_truth() -> None:
    rng = np.random.default_rng(0)

    def interval(layers: int) -> tuple[float, float]:
        x = rng.standard_normal(layers)
        found = agreement(x.tolist(), (x + rng.standard_normal(layers)).tolist()).kendall
        assert found is not None
        return found.low, found.high

    few, many = interval(20), interval(400)
    assert many[1] - many[0] < few[1] - few[0]
    # Two normal variables of correlation r: tau is 2/pi asin(r); here r is the square root of a half.
    assert few[0] < 0.5 < few[1] and many[0] < 0.5 < many[1]


def test_too_few_layers_say_nothing() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 3, 4]).kendall is None
    perfect = agreement([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])
    assert perfect.kendall is not None and perfect.kendall.value == 1 and perfect.layers == 5
