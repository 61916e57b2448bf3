"""Rank correlation of predicted and measured, with its confidence interval.

A resample draws layers with replacement. It is kept as how often each was drawn, and the statistics take such counts:
thousands of resamples are a few matrix products.

Shapes: L layers, R resamples; counts_RL how often a resample drew a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 5
"""Layers below which nothing is said: an interval of fewer covers nearly everything."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic and its 95 percent bootstrap interval (percentiles; Efron 1979)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a prediction orders layers as their measured times do: 1 the same order, 0 no relation, -1 reversed."""

    kendall: Estimate | None
    """Tau-b (Kendall 1945), which allows for ties; None where one side is all alike or layers are few."""
    spearman: Estimate | None
    layers: int


def agreement(predicted: Sequence[float], measured: Sequence[float], seed: int = 0) -> Agreement:
    """Of one prediction (L) with measured times (L)."""
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    return Agreement(
        kendall=_estimate(kendall_tau, x, y, seed), spearman=_estimate(spearman_rho, x, y, seed), layers=len(x)
    )


def kendall_tau(x_L: Floats, y_L: Floats, counts_RL: Floats) -> Floats:
    """Tau-b of every resample (R); not a number where one side is all alike."""
    signs_x, signs_y = (np.sign(v[:, None] - v[None, :]) for v in (x_L, y_L))
    concordance, pairs_x, pairs_y = (_pairs(m, counts_RL) for m in (signs_x * signs_y, signs_x**2, signs_y**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(concordance / np.sqrt(pairs_x * pairs_y))


def spearman_rho(x_L: Floats, y_L: Floats, counts_RL: Floats) -> Floats:
    """Pearson's correlation of the ranks of every resample (R); ties share their mean rank."""
    size = counts_RL.sum(1, keepdims=True)
    ranks = [counts_RL @ (v[:, None] < v[None, :]) + counts_RL @ (v[:, None] == v[None, :]) / 2 for v in (x_L, y_L)]
    a, b = (rank - size / 2 for rank in ranks)  # the mean of counts-weighted mid-ranks
    covariance, of_a, of_b = ((counts_RL * p * q).sum(1) for p, q in ((a, b), (a, a), (b, b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.sqrt(of_a * of_b))


def _pairs(matrix_LL: Floats, counts_RL: Floats) -> Floats:
    """Sum over the pairs of every resample."""
    return np.asarray((counts_RL @ matrix_LL * counts_RL).sum(1))


def _estimate(
    statistic: Callable[[Floats, Floats, Floats], Floats], x: Floats, y: Floats, seed: int
) -> Estimate | None:
    layers = len(x)
    if layers < FEWEST:
        return None
    value = float(statistic(x, y, np.ones((1, layers)))[0])
    if not np.isfinite(value):
        return None
    counts = np.random.default_rng(seed).multinomial(layers, np.full(layers, 1 / layers), RESAMPLES).astype(np.float64)
    tail = 50 * (1 - CONFIDENCE)
    drawn = statistic(x, y, counts)
    low, high = np.percentile(drawn[np.isfinite(drawn)], (tail, 100 - tail))
    return Estimate(value=value, low=float(low), high=float(high))
