"""Simple plans of a small ResNet-20: each is within the limits, and as good as its kind can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.stages.choices import Choices
from sbs_train.stages.limits import Limit
from tests.sbs_train.devices import device_for, space_on
from tests.sbs_train.small import small_network, space_of

NETWORK = small_network(group_size=2, prune="coupled")


def choices_at(target, network=NETWORK, **search):
    space = space_of(
        network.layers, network.topology.groups, fixed=network.topology.fixed, **{"group_size": 2, **search}
    )
    return Choices(network, space, [Limit(cost=space.cost, most=space.cost.reference / target)])


def rankings_of(choices, seed=0):
    rng = np.random.default_rng(seed)
    blocks = [choices.space.blocks(group) for group in choices.space.prunable]
    return {name: [rng.random(count).tolist() for count in blocks] for name in ("magnitude", "Taylor")}


@settings(max_examples=15, deadline=None)
@given(st.floats(1.5, 400), st.integers(0, 9))
def test_every_simple_plan_fits_and_none_comes_twice(target, seed):
    choices = choices_at(target)
    found = choices.simple(rankings_of(choices, seed))
    assert len(set(found.values())) == len(found)
    for choice in found.values():
        assert choices.reduction(choice) >= target * (1 - 1e-6) and choices.fits(choice)
        for group, blocks in zip(choices.space.prunable, choice.blocks_P, strict=True):
            assert len(blocks) >= choices.space.blocks(group) - choices.space.prunable_blocks(group)


def test_the_finest_uniform_bits_that_fit_enter():
    # 64x: 16 bits a product, in every way; the rest is coarser. 8 bits in the first and the last layer cost a little.
    found = choices_at(60).simple(rankings_of(choices_at(60)))
    assert {name for name in found if name.startswith("uniform")} == {"uniform W2A8", "uniform W4A4", "uniform W8A2"}


def test_pruned_plans_have_the_bits_that_leave_the_network_widest():
    names = choices_at(20).simple(rankings_of(choices_at(20)))
    assert any(name.endswith("W8A8") and name.startswith("width") for name in names)
    assert {name.split()[0] for name in names} == {"uniform", "width", "magnitude", "Taylor"}


def test_a_choice_becomes_a_plan_and_the_plan_the_same_choice():
    choices = choices_at(40)
    for choice in choices.simple(rankings_of(choices)).values():
        plan = choices.apply(choice)
        assert choices.of(plan) == choice
        assert plan.cost.reduction == pytest.approx(choices.reduction(choice), rel=1e-6)


def test_a_ranking_takes_the_least_important_blocks_and_as_few_as_it_can():
    choices = choices_at(20)
    ranking = [
        [float(100 * p + b) for b in range(choices.space.blocks(g))] for p, g in enumerate(choices.space.prunable)
    ]
    found = choices.simple({"magnitude": ranking, "Taylor": ranking})
    kept = next(choice for name, choice in found.items() if name == "magnitude W8A8").blocks_P
    first, last = kept[0], kept[-1]
    assert first == tuple(range(len(ranking[0]) - len(first), len(ranking[0])))  # all others of the group are gone
    assert len(last) == len(ranking[-1])  # the most important group is whole
    # One block more, of the group that lost one last, is too much.
    lost = [p for p, blocks in enumerate(kept) if len(blocks) < len(ranking[p])][-1]
    more = [list(blocks) for blocks in kept]
    more[lost] = sorted([*more[lost], min(more[lost]) - 1])
    assert not choices.fits(choices.uniform((8, 8), tuple(map(tuple, more))))


def test_in_milliseconds_plans_have_8_bits():
    network = small_network(group_size=2, prune="coupled")
    space = space_on(network, device_for(network))
    choices = Choices(network, space, [Limit(cost=space.cost, most=space.cost.reference / 4)])
    found = choices.simple(rankings_of(choices))
    assert found and all(set(choice.weights_S) == {8} == set(choice.inputs_S) for choice in found.values())
    assert not any(name.startswith("uniform") for name in found)


def test_without_quantization_or_without_pruning():
    pruned = choices_at(2, small_network("prune", group_size=2))
    assert all(name.endswith("float") for name in pruned.simple(rankings_of(pruned)))
    fixed = choices_at(60, max_pruning_ratio=0.0)
    assert all(name.startswith("uniform") for name in fixed.simple({}))
