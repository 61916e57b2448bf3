"""How latency is measured: warm-up, rounds in random order, every iteration kept.

Machines drift (clocks, heat, neighbours), so contestants take turns in short blocks and the order is drawn anew each
round: a drift then touches all of them alike, and each round by itself compares them.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COV_LIMIT = 0.025
"""Above this coefficient of variation a number is reported with a warning."""

Contestant = Callable[[], float]
"""Runs one inference and returns its milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of one comparison."""

    warmup_ms: float = 300.0
    """Of each contestant, before anything is kept."""
    warmup_iterations: int = 5
    """At least so many, however long they take."""
    rounds: int = 20
    block_ms: float = 25.0
    """A contestant's turn in one round."""
    block_iterations: tuple[int, int] = (5, 200)
    """Fewest and most iterations of a turn."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of one contestant's iterations, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
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

    def all_ms(self) -> npt.NDArray[np.float64]:
        """Every iteration, in order."""
        return np.concatenate([np.asarray(one, np.float64) for one in self.rounds_ms])

    def medians_ms(self) -> npt.NDArray[np.float64]:
        """One median a round."""
        return np.asarray([np.median(one) for one in self.rounds_ms], np.float64)

    def latency(self) -> Latency:
        """Percentiles over all rounds."""
        times = self.all_ms()
        p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
        mean = float(times.mean())
        return Latency(
            p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=mean, cov=float(times.std() / mean), iterations=len(times)
        )


def measure(contestants: Mapping[str, Contestant], protocol: Protocol) -> dict[str, Measurement]:
    """Warm every contestant up, then let all take turns in each round."""
    turn_length = {name: _turn_length(run, protocol) for name, run in contestants.items()}
    order = list(contestants)
    shuffle = random.Random(protocol.seed).shuffle
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
    for _ in range(protocol.rounds):
        shuffle(order)
        for name in order:
            run = contestants[name]
            run()  # the first call after another contestant finds its caches cold
            rounds[name].append(tuple(run() for _ in range(turn_length[name])))
    return {name: Measurement(rounds_ms=tuple(values)) for name, values in rounds.items()}


def speedup(control: Measurement, candidate: Measurement) -> tuple[float, float, float]:
    """How many times faster the candidate is: ratio of the medians, and the 10th and 90th percentile over rounds."""
    ratio = float(np.median(control.all_ms()) / np.median(candidate.all_ms()))
    by_round = control.medians_ms() / candidate.medians_ms()
    low, high = (float(value) for value in np.percentile(by_round, (10, 90)))
    return ratio, low, high


def _turn_length(run: Contestant, protocol: Protocol) -> int:
    """Warm up, and count how many iterations fill a turn."""
    began = time.perf_counter()
    times: list[float] = []
    while len(times) < protocol.warmup_iterations or (time.perf_counter() - began) * 1e3 < protocol.warmup_ms:
        times.append(run())
    fewest, most = protocol.block_iterations
    return int(np.clip(np.ceil(protocol.block_ms / max(np.median(times), 1e-6)), fewest, most))
