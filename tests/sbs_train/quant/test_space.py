"""The search space against the contract's cost and against frozen plans."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract import cost
from sbs_train.contract.latency import device_cost
from sbs_train.quant.space import _leaves_first
from sbs_train.stages.rule import freeze
from sbs_train.stages.search import search_space
from tests.sbs_train.devices import device_for, space_on
from tests.sbs_train.small import group_of, layer_of_cost, small_network, space_of

SIZES = st.integers(1, 12)


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize("mode", ["joint", "quantize"])
def test_bops_are_those_of_the_plan_with_these_choices(model, mode):
    network = small_network(mode, model=model)
    space = search_space(network)
    rng = np.random.default_rng(0)
    for _ in range(3):
        bits_w, bits_a = (
            dict(zip(space.searched, rng.choice((2, 4, 8), len(space.searched)), strict=True)) for _ in "wa"
        )
        blocks = [int(rng.integers(1, space.blocks(group) + 1)) for group in space.prunable]
        kept = {
            g.id: list(range(int(space.fraction(g, n) * g.size))) for g, n in zip(space.prunable, blocks, strict=True)
        }
        fractions = [space.fraction(group, n) for group, n in zip(space.prunable, blocks, strict=True)]
        found = space.bops(list(bits_w.values()), list(bits_a.values()), fractions)
        plan = freeze(network, {k: int(v) for k, v in bits_w.items()}, {k: int(v) for k, v in bits_a.items()}, kept)
        assert found == pytest.approx(plan.cost.bops, rel=1e-12)
        # And by hand, so that both do not share a mistake.
        counts = {group.id: len(group.kept) / group.size for group in plan.groups}
        expected = sum(
            row.macs
            * counts[row.group_out]
            * (1 if row.kind == "depthwise" else counts[row.group_in])
            * (int(bits_w[row.name]) * int(bits_a[row.name]) if row.name in bits_w else 64)
            for row in plan.layers
        )
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize("mode", ["joint", "quantize", "prune"])
def test_the_reachable_range_is_that_of_the_extreme_plans(model, mode):
    network = small_network(mode, model=model)
    space = search_space(network)
    low, high = space.reachable()
    assert low == pytest.approx(1 if mode == "prune" else 16)
    names = space.searched
    least = {
        g.id: list(range(space.config.group_size * (space.blocks(g) - space.prunable_blocks(g))))
        for g in space.prunable
    }
    plan = freeze(network, dict.fromkeys(names, 2), dict.fromkeys(names, 2), least)
    assert high == pytest.approx(plan.cost.reduction)


@pytest.mark.parametrize(("mode", "searched", "pruned"), [("joint", 20, 9), ("quantize", 20, 0), ("prune", 0, 9)])
def test_modes(mode, searched, pruned):
    space = search_space(small_network(mode))
    assert (len(space.searched), len(space.prunable)) == (searched, pruned)
    assert not {"conv1", "fc"} & set(space.searched)


def test_depthwise_layers_cost_their_channels_once():
    layers = {
        "expand": layer_of_cost(600, group_out="g"),
        "depthwise": layer_of_cost(90, kind="depthwise", group_in="g", group_out="g"),
        "project": layer_of_cost(600, group_in="g"),
    }
    space = space_of(layers, [group_of("g", 10, consumers=["depthwise", "project"])])
    ones = np.ones(3)
    assert space.costs(space.bops_cost, ones, ones, np.array([0.5])).tolist() == [300, 45, 300]
    assert space.bops([2, 4, 8], [4, 4, 2], [0.5]) == 300 * 8 + 45 * 16 + 300 * 16


@settings(max_examples=60, deadline=None)
@given(size=SIZES, group_size=SIZES, ratio=st.floats(0, 0.99))
def test_blocks_cover_a_group_and_one_always_stays(size, group_size, ratio):
    group = group_of("g", size)
    layers = {"a": layer_of_cost(10, group_out="g"), "b": layer_of_cost(10, group_in="g")}
    space = space_of(layers, [group], group_size=group_size, max_pruning_ratio=ratio)
    blocks = space.blocks(group)
    assert (blocks - 1) * group_size < size <= blocks * group_size
    assert space.fraction(group, blocks) == 1 and space.fraction(group, 0) == 0
    assert 0 <= space.prunable_blocks(group) <= min(blocks - 1, ratio * blocks)
    # A group that cannot lose a block is no choice.
    assert [g.id for g in space.prunable] == (["g"] if int(ratio * blocks) and blocks > 1 else [])


@pytest.mark.parametrize(
    ("align", "blocks"), [("auto", {16: 4, 32: 8, 64: 16}), (2, {16: 4, 32: 4, 64: 4}), (16, {32: 16, 64: 16})]
)
def test_blocks_are_the_steps_of_the_device_or_of_one_number(align, blocks):
    network = small_network(width=16, align=align)
    device = device_for(network)
    network.device_cost = lambda: device_cost(device, device.networks[0], network.layers)
    space = search_space(network)
    # Groups of 16, 32 and 64 channels; one that has but one block stays whole.
    assert {group.size: space.block_size(group) for group in space.prunable} == blocks
    elsewhere = search_space(small_network(width=16))
    sizes = {group.size: elsewhere.block_size(group) for group in elsewhere.prunable}
    assert sizes == {16: 4, 32: 4, 64: 4}, "no device, no steps"


def test_groups_that_may_not_be_pruned_are_left_out():
    layers = {"a": layer_of_cost(10, group_out="g"), "b": layer_of_cost(10, group_in="g")}
    assert not space_of(layers, [group_of("g", 8, prunable=False)]).prunable


@settings(max_examples=50, deadline=None)
@given(
    macs=st.lists(st.integers(1, 1000), min_size=2, max_size=4),
    choice=st.lists(st.sampled_from((2, 4, 8)), min_size=8, max_size=8),
    kept=st.floats(0.1, 1),
)
def test_bops_of_random_chains_are_sums_of_the_contracts_cost(macs, choice, kept):
    last = len(macs) - 1
    layers = {
        str(i): layer_of_cost(m, group_in="g" if i == 1 else "none", group_out="g" if i == 0 else "none")
        for i, m in enumerate(macs)
    }
    space = space_of(layers, [group_of("g", 8)], fixed=[str(last)] if last > 1 else [])
    bits_w, bits_a = choice[: len(space.searched)], choice[4 : 4 + len(space.searched)]
    expected = 0.0
    for i, m in enumerate(macs):
        left = cost.kept_macs(m, kept if i == 1 else 1, kept if i == 0 else 1, depthwise=0)
        pair = (bits_w[i], bits_a[i]) if i < len(space.searched) else (8, 8)
        expected += cost.bops(left, *pair)
    assert space.bops(bits_w, bits_a, [kept]) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 8))
def test_precisions_are_the_best_of_all(seed, count):
    rng = np.random.default_rng(seed)
    layers = {str(i): layer_of_cost(100) for i in range(count)}
    space = space_of(layers)
    # Any tree, in any order, and values of both precisions.
    space.follows_L = np.array([0, *(int(rng.integers(0, i)) for i in range(1, count))])
    space._leaves_first = _leaves_first(space.follows_L)
    quantized, in_float, switch = rng.exponential(size=(3, count)) * [[1], [1], [0.5]]

    def value(chosen):
        chosen = np.array(chosen)
        changed = chosen != chosen[space.follows_L]
        return np.where(chosen, in_float, quantized).sum() + switch[changed].sum()

    least = min(value(chosen) for chosen in itertools.product((False, True), repeat=count))
    assert value(space.precisions(quantized, in_float, switch)) == pytest.approx(least)


@pytest.mark.parametrize("metric", ["loss", "error"])
def test_float_is_a_candidate_of_the_loss_rule_on_a_device(metric):
    network = small_network(model="mobilenetv2", metric=metric)
    space = space_on(network, device_for(network, depthwise_factor=0.1))
    assert space.floats == (metric == "loss") and (32 in space.bits_w) == space.floats
    assert ({"features.0.0"} <= set(space.searched) or len(space.searched) == len(network.layers)) == space.floats
    low, high = space.reachable()
    quantized = space_on(small_network(model="mobilenetv2", metric="error"), device_for(network, depthwise_factor=0.1))
    assert high > quantized.reachable()[1] if space.floats else high == quantized.reachable()[1]
    assert low <= high
