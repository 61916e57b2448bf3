"""The choice against the best of all subsets, where every time is known."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_deploy.placement.choose import Choice, choose
from tests.sbs_deploy.placement.fake_bench import BASE, PROMOTED, SLIM, FakeBench

TIMES = st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(0.1, 2.0)), min_size=2, max_size=8)


def chosen(bench: FakeBench, *, forms: bool = False, depthwise: tuple[str, ...] = ()) -> Choice:
    return choose(bench, BASE, [PROMOTED] if forms else [], bench.order, depthwise)


def best_ms(bench: FakeBench) -> float:
    """Of all subsets of layers in float, in both forms."""
    subsets = itertools.chain.from_iterable(
        itertools.combinations(bench.order, size) for size in range(len(bench.order) + 1)
    )
    return min(bench.ms(replace(form, float_layers=one)) for one in subsets for form in (BASE, PROMOTED))


@settings(deadline=None, max_examples=30)
@given(times=TIMES, switch_ms=st.sampled_from([0.0, 0.05, 0.3]), promoted=st.sampled_from([1.0, 0.7]))
def test_the_best_subset_is_found(times: list[tuple[float, float]], switch_ms: float, promoted: float) -> None:
    int8_ms, float_ms = zip(*times, strict=True)
    bench = FakeBench(int8_ms=int8_ms, float_ms=float_ms, switch_ms=switch_ms, promoted=promoted)
    found = chosen(bench, forms=promoted < 1)
    assert bench.ms(found.graph) <= best_ms(bench) * 1.02
    assert bench.ms(found.graph) <= bench.ms(SLIM) * 1.003, "all layers in float is a choice"
    assert found.finished


@settings(deadline=None, max_examples=20)
@given(times=TIMES, switch_ms=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 1000))
def test_noise_does_not_make_it_worse(times: list[tuple[float, float]], switch_ms: float, seed: int) -> None:
    """A busy neighbour, and 2 % of noise in every round."""
    int8_ms, float_ms = zip(*times, strict=True)
    bench = FakeBench(int8_ms=int8_ms, float_ms=float_ms, switch_ms=switch_ms, noise=0.02, seed=seed)
    assert bench.ms(chosen(bench).graph) <= min(bench.ms(BASE), bench.ms(SLIM)) * 1.02


def test_equal_times_change_nothing() -> None:
    for seed in range(5):
        bench = FakeBench(int8_ms=[1.0] * 6, float_ms=[1.0] * 6, noise=0.02, seed=seed)
        assert bench.ms(chosen(bench, forms=True).graph) == 6.0


def test_without_a_profiler_whole_graphs_decide() -> None:
    bench = FakeBench(int8_ms=[1, 3, 1, 3], float_ms=[2, 1, 2, 1], profiled=False)
    found = chosen(bench, depthwise=("layer1", "layer3"))
    assert found.graph == replace(BASE, float_layers=("layer1", "layer3"))
    assert (found.int8_ms, found.float_ms) == ({}, {})


def test_what_answers_worse_is_refused_and_listed() -> None:
    bench = FakeBench(
        int8_ms=[2.0, 2.0],
        float_ms=[3.0, 1.0],
        promoted=0.5,
        accurate=lambda graph: graph.activations == "exact",
    )
    found = chosen(bench, forms=True)
    assert found.graph == replace(BASE, float_layers=("layer1",))
    assert PROMOTED in found.refused and found.speeds[PROMOTED] == pytest.approx(2.0)


def test_the_end_of_the_minutes_is_said_and_the_last_race_is_held() -> None:
    bench = FakeBench(int8_ms=[1.0] * 6, float_ms=[1.01] * 6, races=1)
    found = chosen(bench)
    assert not found.finished
    assert SLIM in found.final and found.graph in found.final and BASE in found.final
    assert found.graph == BASE
