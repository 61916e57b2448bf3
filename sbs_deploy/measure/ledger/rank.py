"""Rank correlation of predicted and measured times, with a confidence interval.

A resample draws layers with replacement. It is stored as counts per layer, so that thousands of resamples are a few
matrix products; scipy's bootstrap takes seconds for each statistic, and is not in the base install.

Shapes: L layers, R resamples; counts_RL how often a resample drew a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sbs_deploy.measure.protocol import CONFIDENCE, RESAMPLES

Floats = npt.NDArray[np.float64]

FEWEST = 5
"""Fewest layers for an estimate: with fewer, the interval covers nearly everything."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic and its 95 percent bootstrap interval (percentiles; Efron 1979)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Rank correlation of predicted and measured layer times: 1 for equal order, 0 for no relation, -1 for reversed."""

    kendall: Estimate | None
    """Tau-b (Kendall 1945), which allows for ties; None if all values of one side are equal or layers are few."""
    layers: int


def agreement(predicted: Sequence[float], measured: Sequence[float], seed: int = 0) -> Agreement:
    """Agreement of one prediction (L) with measured times (L)."""
    x, y, layers = np.asarray(predicted, np.float64), np.asarray(measured, np.float64), len(predicted)
    if layers < FEWEST or not np.ptp(x) or not np.ptp(y):
        return Agreement(kendall=None, layers=layers)
    counts = np.random.default_rng(seed).multinomial(layers, np.full(layers, 1 / layers), RESAMPLES).astype(np.float64)
    drawn = kendall_tau(x, y, counts)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn[np.isfinite(drawn)], (tail, 100 - tail))
    value = kendall_tau(x, y, np.ones((1, layers)))[0]
    return Agreement(kendall=Estimate(value=float(value), low=float(low), high=float(high)), layers=layers)


def kendall_tau(x_L: Floats, y_L: Floats, counts_RL: Floats) -> Floats:
    """Tau-b of every resample (R); NaN if all values of one side are equal."""
    signs_x, signs_y = (np.sign(v[:, None] - v[None, :]) for v in (x_L, y_L))
    both, of_x, of_y = ((counts_RL @ m * counts_RL).sum(1) for m in (signs_x * signs_y, signs_x**2, signs_y**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / np.sqrt(of_x * of_y))
