"""How latency is measured: warm-up until times are stable, rounds in random order, every iteration kept.

Machines drift (clocks, heat, other processes), so contestants take turns in short blocks, in a new random order each
round: drift then affects all alike, and each round is a comparison. Rounds vary independently, iterations do not, so
confidence intervals resample whole rounds (block bootstrap).
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COV_LIMIT = 0.025
"""Coefficient of variation above which a number gets a warning."""

CONFIDENCE = 0.95
RESAMPLES = 2000

Contestant = Callable[[], float]
"""A function that runs one inference and returns its milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of one comparison."""

    warmup_ms: float = 300.0
    """Shortest warm-up of each contestant."""
    warmup_max_ms: float = 5000.0
    """Longest warm-up, for times that do not settle."""
    stable: float = 0.02
    """Times have settled if the medians of the last two thirds of a warm-up differ by less than this part."""
    warmup_iterations: int = 5
    """Fewest iterations of a warm-up."""
    rounds: int = 20
    block_ms: float = 25.0
    """Milliseconds of a contestant's turn in one round."""
    block_iterations: tuple[int, int] = (5, 200)
    """Fewest and most iterations of a turn."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Percentiles of one contestant's iterations, in milliseconds."""

    p50_ms: float
    p50_interval_ms: tuple[float, float]
    """95 percent confidence interval of the median."""
    p90_ms: float
    p99_ms: float
    cov: float
    """Standard deviation over mean of all iterations."""
    iterations: int

    @property
    def steady(self) -> bool:
        """Whether the iterations vary little enough to trust small differences."""
        return self.cov <= COV_LIMIT


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Times of one contestant by round, in milliseconds."""

    rounds_ms: tuple[tuple[float, ...], ...]
    warm: bool = True
    """Whether times had settled at the end of the warm-up."""

    def all_ms(self) -> npt.NDArray[np.float64]:
        """Times of all iterations, in order."""
        return np.concatenate([np.asarray(one, np.float64) for one in self.rounds_ms])

    def medians_ms(self) -> npt.NDArray[np.float64]:
        """Median of each round."""
        return np.asarray([np.median(one) for one in self.rounds_ms], np.float64)

    def latency(self) -> LatencyStats:
        """Percentiles over all rounds."""
        times = self.all_ms()
        p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
        return LatencyStats(
            p50_ms=p50,
            p50_interval_ms=confidence_interval(self.medians_ms()),
            p90_ms=p90,
            p99_ms=p99,
            cov=float(times.std() / times.mean()),
            iterations=len(times),
        )


def measure(contestants: Mapping[str, Contestant], protocol: Protocol) -> dict[str, Measurement]:
    """Warm up all contestants, then measure them in turns in each round; results by name."""
    warmed = {name: _warm_up(run, protocol) for name, run in contestants.items()}
    order = list(contestants)
    shuffle = random.Random(protocol.seed).shuffle
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
    for _ in range(protocol.rounds):
        shuffle(order)
        for name in order:
            run = contestants[name]
            run()  # uncounted, as another contestant has replaced the caches
            rounds[name].append(tuple(run() for _ in range(warmed[name][0])))
    return {name: Measurement(rounds_ms=tuple(values), warm=warmed[name][1]) for name, values in rounds.items()}


def speedup(control: Measurement, candidate: Measurement) -> tuple[float, float, float]:
    """Speed-up of the candidate over the control, and the ends of its 95 percent confidence interval.

    The speed-up is the median over rounds of the ratio of both medians: a slow round slows both.
    """
    by_round = control.medians_ms() / candidate.medians_ms()
    return (float(np.median(by_round)), *confidence_interval(by_round))


def confidence_interval(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval (Efron 1979) of the median of values, one per round."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(values[drawn], axis=1), (tail, 100 - tail))
    return float(low), float(high)


def _warm_up(run: Contestant, protocol: Protocol) -> tuple[int, bool]:
    """(number of iterations that fill a turn, whether times have settled)."""
    began = time.perf_counter()
    times: list[float] = []
    look = protocol.warmup_iterations
    while True:
        times.append(run())
        passed_ms = (time.perf_counter() - began) * 1e3
        over = passed_ms >= protocol.warmup_max_ms
        if not over and (len(times) < look or passed_ms < protocol.warmup_ms):
            continue
        third = max(1, len(times) // 3)
        last, before = np.median(times[-third:]), np.median(times[-2 * third : -third] or times[-third:])
        still = bool(abs(last - before) <= protocol.stable * before)
        if still or over:
            break
        look = len(times) + third
    fewest, most = protocol.block_iterations
    return int(np.clip(np.ceil(protocol.block_ms / max(last, 1e-6)), fewest, most)), still
