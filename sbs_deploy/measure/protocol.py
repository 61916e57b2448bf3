"""How latency is measured: warm-up until times are stable, rounds in random order, every iteration kept.

Machines drift (clocks, heat, other processes), so contestants take turns in short blocks, in a new random order each
round: drift then affects all alike, and each round is a comparison. Rounds vary independently, iterations do not, so
confidence intervals resample whole rounds (block bootstrap).

Latencies are those of the wall clock. Comparisons go by CPU time where the engines have it: a process that waits for a
core loses more of a long inference than of one that fits between two turns of its neighbours.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sbs_deploy.backends.base import Engine
from sbs_deploy.graph.arrays import Named

COV_LIMIT = 0.025
"""Coefficient of variation above which a number gets a warning."""

CONFIDENCE = 0.95
RESAMPLES = 2000

WIDE = 1.3
"""Ratio of the ends of a speed-up's interval, or of two estimates of it, above which it is no result."""


class Times(NamedTuple):
    """Milliseconds of one inference."""

    wall_ms: float
    cpu_ms: float | None = None
    """CPU time; None where no single thread of this process computes the whole inference."""

    @property
    def undisturbed_ms(self) -> float:
        """CPU time if it is known: other processes hardly move it."""
        return self.wall_ms if self.cpu_ms is None else self.cpu_ms


Contestant = Callable[[], Times]
"""A function that runs one inference and returns its times."""


def contestant(engine: Engine, inputs: Named) -> Contestant:
    """Times inferences of an engine."""
    return lambda: Times(engine.latency_ms(inputs), engine.last_cpu_ms)


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
    cpu_rounds_ms: tuple[tuple[float, ...], ...] | None = None
    """CPU time of the same iterations, if it is known."""
    warm: bool = True
    """Whether times had settled at the end of the warm-up."""

    def all_ms(self) -> npt.NDArray[np.float64]:
        """Times of all iterations, in order."""
        return np.concatenate([np.asarray(one, np.float64) for one in self.rounds_ms])

    def medians_ms(self) -> npt.NDArray[np.float64]:
        """Median of each round."""
        return np.asarray([np.median(one) for one in self.rounds_ms], np.float64)

    def quick_ms(self, *, cpu: bool | None = None) -> npt.NDArray[np.float64]:
        """First quartile of each round, by CPU time if it is known, or as `cpu` says.

        Disturbances only add time, so a low quantile is the least disturbed; a minimum would favour the contestant with
        more iterations in a turn.
        """
        by_cpu = self.cpu_rounds_ms is not None if cpu is None else cpu
        rounds = self.cpu_rounds_ms if by_cpu and self.cpu_rounds_ms is not None else self.rounds_ms
        return np.asarray([np.percentile(one, 25) for one in rounds], np.float64)

    @property
    def quickest_ms(self) -> float:
        """The quickest round, as `quick_ms` sees it."""
        return float(self.quick_ms().min())

    @property
    def cpu_p50_ms(self) -> float | None:
        """Median CPU time, if it is known."""
        return None if self.cpu_rounds_ms is None else float(np.median(np.concatenate(self.cpu_rounds_ms)))

    def pooled_with(self, others: Sequence["Measurement"]) -> "Measurement":
        """This and others of the same rounds as one, such as several builds of an artifact."""
        all_ = (self, *others)
        cpu = [one.cpu_rounds_ms for one in all_ if one.cpu_rounds_ms is not None]
        return Measurement(
            rounds_ms=_joined([one.rounds_ms for one in all_]),
            cpu_rounds_ms=_joined(cpu) if len(cpu) == len(all_) else None,
            warm=all(one.warm for one in all_),
        )

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
    rounds: dict[str, list[list[Times]]] = {name: [] for name in contestants}
    for _ in range(protocol.rounds):
        shuffle(order)
        for name in order:
            run = contestants[name]
            run()  # uncounted, as another contestant has replaced the caches
            rounds[name].append([run() for _ in range(warmed[name][0])])
    return {name: _measurement(values, warm=warmed[name][1]) for name, values in rounds.items()}


def speedup(control: Measurement, candidate: Measurement) -> tuple[float, float, float]:
    """Speed-up of the candidate over the control, and the ends of its 95 percent confidence interval.

    The speed-up is the median over rounds of the ratio of both in that round (`Measurement.quick_ms`), by CPU time
    where both have it: a slow round slows both.
    """
    by_round = np.divide(*_on_one_clock(control, candidate))
    return (float(np.median(by_round)), *confidence_interval(by_round))


def disagreement(control: Measurement, candidate: Measurement) -> tuple[float, float] | None:
    """The range that a speed-up may lie in, if rounds do not agree on it; None if they do.

    They agree where the interval is narrow and the quickest rounds of both say the same: a busy machine can also be
    wrong by the same factor in most rounds.
    """
    ratio, low, high = speedup(control, candidate)
    quick, quicker = _on_one_clock(control, candidate)
    undisturbed = float(quick.min() / quicker.min())
    low, high = min(low, ratio, undisturbed), max(high, ratio, undisturbed)
    return (low, high) if high > WIDE * low else None


def confidence_interval(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval (Efron 1979) of the median of values, one per round."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(values[drawn], axis=1), (tail, 100 - tail))
    return float(low), float(high)


def _on_one_clock(control: Measurement, candidate: Measurement) -> tuple[npt.NDArray[np.float64], ...]:
    """Milliseconds of both by round: CPU time if both have it, else the wall clock's."""
    cpu = control.cpu_rounds_ms is not None and candidate.cpu_rounds_ms is not None
    return control.quick_ms(cpu=cpu), candidate.quick_ms(cpu=cpu)


def _measurement(rounds: list[list[Times]], *, warm: bool) -> Measurement:
    cpu = tuple(tuple(one.cpu_ms for one in turn if one.cpu_ms is not None) for turn in rounds)
    known = all(len(some) == len(turn) for some, turn in zip(cpu, rounds, strict=True))
    wall = tuple(tuple(one.wall_ms for one in turn) for turn in rounds)
    return Measurement(rounds_ms=wall, cpu_rounds_ms=cpu if known else None, warm=warm)


def _joined(parts: Sequence[tuple[tuple[float, ...], ...]]) -> tuple[tuple[float, ...], ...]:
    return tuple(sum(turns, ()) for turns in zip(*parts, strict=True))


def _warm_up(run: Contestant, protocol: Protocol) -> tuple[int, bool]:
    """(number of iterations that fill a turn, whether times have settled)."""
    began = time.perf_counter()
    times: list[float] = []
    look = protocol.warmup_iterations
    while True:
        times.append(run().wall_ms)
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
