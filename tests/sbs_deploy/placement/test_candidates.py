"""Candidates: forms, regions against all subsets, and small moves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT_RTX
from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.placement.candidates import float_sets, forms, moves, regions
from sbs_train.contract.plan import OutputRange
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.placement.fake_bench import BASE, PROMOTED

GAINS = st.lists(st.floats(-2, 2), min_size=1, max_size=8)


def test_forms_change_only_what_is_free_and_possible() -> None:
    plan = small_plan()
    ranged = plan.model_copy(update={"ranges": [OutputRange(name="conv1", low=0.0, high=1.0)]})
    assert [one.activations for one in forms(BASE, ["activations"], ONNXRUNTIME, plan)] == ["promote-8", "promote"]
    assert BASE in forms(PROMOTED, ["activations"], ONNXRUNTIME, plan)
    assert forms(BASE, [], ONNXRUNTIME, ranged) == []
    assert forms(BASE, ["outputs"], ONNXRUNTIME, plan) == [], "no ranges"
    assert [one.outputs for one in forms(BASE, ["outputs"], ONNXRUNTIME, ranged)] == ["layers", "all"]
    half = Legalisation(precision="int8", depthwise="fp16")
    found = forms(half, ["activations", "outputs"], TENSORRT_RTX, ranged)
    assert {(one.depthwise, one.outputs) for one in found} == {("fp16", "none")}


@given(gains=GAINS, switch_ms=st.floats(0, 2))
def test_regions_are_the_best_of_a_chain(gains: list[float], switch_ms: float) -> None:
    order = [f"layer{i}" for i in range(len(gains))]

    def value(chosen: tuple[bool, ...]) -> float:
        switches = sum(a != b for a, b in itertools.pairwise(chosen))
        return sum(gain for gain, one in zip(gains, chosen, strict=True) if one) - switch_ms * switches

    best = max(value(chosen) for chosen in itertools.product((False, True), repeat=len(order)))
    found = regions(dict(zip(order, gains, strict=True)), order, switch_ms)
    assert abs(value(tuple(name in found for name in order)) - best) < 1e-9


def test_sets_without_a_profile() -> None:
    assert float_sets({}, ["a", "b", "c"], ["b"]) == [frozenset("b"), frozenset("abc")]


def test_the_slowest_layers_come_alone() -> None:
    gains = {"a": 5.0, "b": -1.0, "c": 3.0, "d": 1.0, "e": 1.0}
    found = float_sets(gains, list(gains), [])
    assert frozenset("a") in found, "half of all gains"
    assert frozenset("ac") in found, "four fifths"
    assert frozenset("acde") in found and frozenset("abcde") in found
    assert len(found) == len(set(found))


@given(gains=st.lists(st.integers(-9, 9), min_size=1, max_size=8), data=st.data())
def test_moves_are_runs_of_one_side_in_the_order_of_their_gain(gains: list[int], data: st.DataObject) -> None:
    order = [f"layer{i}" for i in range(len(gains))]
    floats = data.draw(st.sets(st.sampled_from(order)))
    by_name = dict(zip(order, gains, strict=True))
    found = list(moves(floats, by_name, order))
    assert {frozenset([name]) for name in order} <= set(found)
    worth = [sum(-by_name[name] if name in floats else by_name[name] for name in move) for move in found]
    assert worth == sorted(worth, reverse=True)
    for move in found:
        places = [order.index(name) for name in order if name in move]
        assert places == list(range(places[0], places[-1] + 1)) and len({name in floats for name in move}) == 1
