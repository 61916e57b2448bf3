import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.protocol import (
    Measurement,
    Protocol,
    Times,
    confidence_interval,
    disagreement,
    measure,
    speedup,
)

QUICK = Protocol(warmup_ms=0.0, warmup_iterations=3, rounds=8, block_ms=1.0, block_iterations=(2, 4))

milliseconds = st.floats(0.001, 1e4)


@given(st.lists(st.lists(milliseconds, min_size=1, max_size=9), min_size=1, max_size=6))
def test_latency_against_numpy(rounds: list[list[float]]) -> None:
    flat = sorted(value for one in rounds for value in one)
    latency = Measurement(rounds_ms=tuple(tuple(one) for one in rounds)).latency()
    assert latency.iterations == len(flat)
    for name, percentile in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99)):
        position = (len(flat) - 1) * percentile / 100
        low, high = flat[int(position)], flat[min(int(position) + 1, len(flat) - 1)]
        expected = low + (high - low) * (position - int(position))
        assert getattr(latency, name) == pytest.approx(expected)
    mean = sum(flat) / len(flat)
    assert latency.cov == pytest.approx((sum((v - mean) ** 2 for v in flat) / len(flat)) ** 0.5 / mean, abs=1e-9)


def test_contestants_take_turns_in_random_order_after_a_warm_up() -> None:
    calls: list[str] = []

    def contestant(name: str, duration_ms: float) -> Times:
        calls.append(name)
        return Times(duration_ms)

    results = measure({"a": lambda: contestant("a", 0.25), "b": lambda: contestant("b", 10.0)}, QUICK)
    warm, rest = calls[:6], "".join(calls[6:])
    assert warm == ["a"] * 3 + ["b"] * 3
    # a fills a 1 ms turn with 4 iterations, b needs the fewest (2); one more call each turn is not kept.
    assert [len(one) for one in results["a"].rounds_ms] == [4] * 8
    assert [len(one) for one in results["b"].rounds_ms] == [2] * 8
    turns = [rest[i : i + 8] for i in range(0, len(rest), 8)]
    assert set(turns) == {"aaaaabbb", "bbbaaaaa"}, "both orders occur, and every round holds both"


def test_a_drift_does_not_touch_the_speedup() -> None:
    slow_down = np.linspace(1, 3, 20)
    control = Measurement(rounds_ms=tuple((2.0 * d,) * 5 for d in slow_down))
    candidate = Measurement(rounds_ms=tuple((1.0 * d,) * 5 for d in slow_down))
    assert speedup(control, candidate) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(200):
        low, high = confidence_interval(rng.lognormal(0.0, 0.3, 40), seed)
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 200 <= 0.995


def test_the_speedups_interval_is_of_rounds_not_of_iterations() -> None:
    rng = np.random.default_rng(1)
    level = rng.lognormal(0.0, 0.2, 20)
    control = Measurement(rounds_ms=tuple((float(v),) * 100 for v in level))
    candidate = Measurement(rounds_ms=((1.0,) * 100,) * 20)
    ratio, low, high = speedup(control, candidate)
    assert low < ratio < high and high / low > 1.05, "a hundred equal iterations of a round say no more than one"
    latency = control.latency()
    assert latency.p50_interval_ms[0] <= np.median(level) <= latency.p50_interval_ms[1]


def test_a_warm_up_goes_on_until_times_stop_moving() -> None:
    count = {"falling": 0, "endless": 0}

    def falling() -> Times:
        count["falling"] += 1
        return Times(1.0 + 10.0 * 0.9 ** count["falling"])

    def endless() -> Times:
        count["endless"] += 1
        time.sleep(1e-4)
        return Times(float(count["endless"] ** 4))

    protocol = Protocol(
        warmup_ms=0, warmup_max_ms=100, warmup_iterations=3, rounds=1, block_ms=1, block_iterations=(1, 1)
    )
    results = measure({"falling": falling, "endless": endless}, protocol)
    assert results["falling"].warm and count["falling"] > 20
    assert not results["endless"].warm


def test_speedup_of_a_slower_candidate_is_below_one() -> None:
    control, candidate = Measurement(rounds_ms=((1.0, 1.0),)), Measurement(rounds_ms=((4.0, 4.0),))
    assert speedup(control, candidate)[0] == 0.25


@pytest.mark.parametrize(("times", "steady"), [((1.0, 1.0, 1.01), True), ((1.0, 1.0, 1.5), False)])
def test_steady(times: tuple[float, ...], steady: bool) -> None:
    assert Measurement(rounds_ms=(times,)).latency().steady is steady


def test_real_sleeps_are_told_apart() -> None:
    def sleeper(seconds: float) -> Times:
        began = time.perf_counter()
        time.sleep(seconds)
        return Times((time.perf_counter() - began) * 1e3)

    protocol = Protocol(warmup_ms=0, warmup_iterations=1, rounds=5, block_ms=1, block_iterations=(2, 3))
    results = measure({"fast": lambda: sleeper(0.001), "slow": lambda: sleeper(0.004)}, protocol)
    assert 2 < speedup(results["slow"], results["fast"])[0] < 6


class Machine:
    """A core on a made-up clock that other processes hold in turns, as a scheduler gives it to them.

    Args:
        turn_ms: CPU time after which another process gets the core.
        held_ms: how long the other processes keep it then.
        bursts: milliseconds that the others come for, and are gone for; 0 if they are always there.
    """

    def __init__(self, turn_ms: float, held_ms: float, *, bursts: int, seed: int) -> None:
        self.turn_ms, self.held_ms, self.bursts = turn_ms, held_ms, bursts
        self.rng = np.random.default_rng(seed)
        self.cpu_ms = self.wall_ms = 0.0
        self.until = turn_ms

    def run(self, ms: float, *, clock: bool = True) -> Times:
        """Compute for `ms`, give or take a little for caches that another process has used."""
        before = self.wall_ms
        spent = ms * (1 + abs(self.rng.normal(0.0, 0.01)))
        self.cpu_ms, self.wall_ms = self.cpu_ms + spent, self.wall_ms + spent
        while self.cpu_ms >= self.until:
            self.until += self.turn_ms
            if not self.bursts or (self.wall_ms // self.bursts) % 2:
                self.wall_ms += self.held_ms
        return Times(self.wall_ms - before, spent if clock else None)


@pytest.mark.parametrize("bursts", [0, 400])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_do_not_move_a_speedup_by_cpu_time(bursts: int, seed: int) -> None:
    machine = Machine(3.0, 12.0, bursts=bursts, seed=seed)
    protocol = Protocol(warmup_ms=0, warmup_iterations=3, rounds=20)
    times = measure({"fp32": lambda: machine.run(4.1), "int8": lambda: machine.run(1.0)}, protocol)
    by_wall = times["fp32"].medians_ms() / times["int8"].medians_ms()
    if not bursts:
        assert np.median(by_wall) > 12, "each inference in float loses its core, three of four in int8 do not"
    ratio, low, high = speedup(times["fp32"], times["int8"])
    assert ratio == pytest.approx(4.1, rel=0.02) and low <= ratio <= high < 1.02 * low
    assert disagreement(times["fp32"], times["int8"]) is None
    assert times["int8"].quickest_ms == pytest.approx(1.0, rel=0.02) == times["int8"].cpu_p50_ms


@pytest.mark.parametrize("burst_ms", [100, 400, 3000])
def test_without_cpu_time_bursts_leave_the_true_speedup_or_none(burst_ms: int) -> None:
    machine = Machine(3.0, 12.0, bursts=burst_ms, seed=0)
    protocol = Protocol(warmup_ms=0, warmup_iterations=3, rounds=20)
    times = measure(
        {"fp32": lambda: machine.run(4.1, clock=False), "int8": lambda: machine.run(1.0, clock=False)}, protocol
    )
    found = disagreement(times["fp32"], times["int8"])
    true = pytest.approx(4.1, rel=0.03)
    assert speedup(times["fp32"], times["int8"])[0] == true if found is None else found[0] <= 4.2
    assert times["fp32"].cpu_p50_ms is None


def test_rounds_that_agree_on_a_factor_that_the_quickest_rounds_deny() -> None:
    # Nine of ten rounds five times as slow for one contestant alone: the interval is narrow, and wrong.
    control = Measurement(rounds_ms=((4.0,) * 5, *(((20.0,) * 5,) * 19)))
    candidate = Measurement(rounds_ms=((1.0,) * 5,) * 20)
    assert speedup(control, candidate) == (20.0, 20.0, 20.0)
    assert disagreement(control, candidate) == (4.0, 20.0)


def test_cpu_time_of_one_contestant_alone_compares_nothing() -> None:
    both = Measurement(rounds_ms=((4.0,),), cpu_rounds_ms=((2.0,),))
    wall = Measurement(rounds_ms=((1.0,),))
    assert speedup(both, wall)[0] == 4.0
    pooled = both.pooled_with([wall])
    assert pooled.rounds_ms == ((4.0, 1.0),) and pooled.cpu_rounds_ms is None
    assert both.pooled_with([both]).cpu_rounds_ms == ((2.0, 2.0),)


@given(st.lists(st.lists(st.tuples(milliseconds, milliseconds), min_size=1, max_size=9), min_size=1, max_size=6))
def test_quick_rounds_against_numpy(rounds: list[list[tuple[float, float]]]) -> None:
    wall, cpu = (tuple(tuple(pair[i] for pair in one) for one in rounds) for i in (0, 1))
    found = Measurement(rounds_ms=wall, cpu_rounds_ms=cpu)
    assert found.quickest_ms == min(np.percentile(one, 25) for one in cpu)
    np.testing.assert_array_equal(found.quick_ms(cpu=False), [np.percentile(one, 25) for one in wall])
    assert found.cpu_p50_ms == np.median(sum(cpu, ()))
