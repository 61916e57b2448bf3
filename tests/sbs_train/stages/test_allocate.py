"""Allocation against all plans of small spaces, enumerated by NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.allocate import allocate
from sbs_train.stages.limits import Limit
from sbs_train.stages.search import search_space
from tests.sbs_train.devices import device_for, space_on
from tests.sbs_train.small import at_most, group_of, layer_of_cost, reduced, small_network, space_of

BITS = np.array([2.0, 4.0, 8.0])
NETWORK = small_network(model="mobilenetv2")
LEVELS = [0.0, 0.01, 0.1, 1.0]
"""Losses of the tied problems: many choices are worth the same, or nothing."""


def extremes(space):
    """BOPs of the cheapest and of the dearest plan."""
    low, high = space.reachable()
    return space.bops_cost.reference / high, space.bops_cost.reference / low


def chain(macs, groups=(), *, depthwise=(), **search):
    """Layers one after the other, the ends fixed; group p lies between searched layers p and p + 1."""
    layers = {str(i): layer_of_cost(m, kind="depthwise" if i in depthwise else "conv") for i, m in enumerate(macs)}
    for p in range(len(groups)):
        layers[str(p + 1)].group_out = layers[str(p + 2)].group_in = f"g{p}"
    return space_of(
        layers,
        [group_of(f"g{p}", size) for p, size in enumerate(groups)],
        fixed=["0", str(len(macs) - 1)],
        **{"max_pruning_ratio": 0.75, **search},
    )


@st.composite
def problems(draw, *, prune=True, most=3):
    """A space and losses: of all sizes, or tied, with layers that may be alike."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    searched = draw(st.integers(1, most))
    groups = draw(st.lists(st.integers(2, 5), max_size=min(2, searched - 1))) if prune else []
    return problem_of(rng, searched, groups, alike=draw(st.booleans()), tied=draw(st.booleans()))


def problem_of(rng, searched, groups, *, alike=False, tied=False):
    space = chain([100.0] * (searched + 2) if alike else rng.uniform(10, 1000, searched + 2).round(), groups)

    def ladder():
        if tied:
            loss = rng.choice(LEVELS, (searched, 2))
        else:
            loss = rng.exponential(size=(searched, 2)) * 10 ** rng.uniform(-3, 0, (searched, 1))
        loss = -np.sort(-loss, 1)
        loss = np.repeat(loss[:1], searched, 0) if alike else loss
        return np.concatenate([loss, np.zeros((searched, 1))], 1)

    blocks = [rng.choice(LEVELS, n) if tied else rng.exponential(size=n) for n in groups]
    return space, Losses(weights_SK=ladder(), inputs_SK=ladder(), blocks=blocks)


def all_plans(space, losses):
    """BOPs and loss of every plan there is."""
    costs, totals = [], []
    choices = [range(space.blocks(g) - space.prunable_blocks(g), space.blocks(g) + 1) for g in space.prunable]
    for counts in itertools.product(*choices):
        kept = np.array([n / group.size for n, group in zip(counts, space.prunable, strict=True)])
        ones = np.ones(len(space.layers))
        macs = space.costs(space.bops_cost, ones, ones, kept)
        cost = np.array([sum(64 * m for m, name in zip(macs, space.layers, strict=True) if name not in space.searched)])
        total = np.array([removed(losses, counts)])
        for s, row in enumerate(space.row_S):
            cost = np.add.outer(cost, macs[row] * np.outer(BITS, BITS)).ravel()
            total = np.add.outer(total, np.add.outer(losses.weights_SK[s], losses.inputs_SK[s])).ravel()
        costs.append(cost)
        totals.append(total)
    return np.concatenate(costs), np.concatenate(totals)


def removed(losses, counts):
    return sum(np.sort(loss_B)[: len(loss_B) - n].sum() for loss_B, n in zip(losses.blocks, counts, strict=True))


def loss_of(plan, losses):
    rows = np.arange(len(plan.weights_S))
    bits = losses.weights_SK[rows, plan.weights_S].sum() + losses.inputs_SK[rows, plan.inputs_S].sum()
    return bits + removed(losses, plan.blocks_P)


def bops_of(plan, space):
    kept = [n / group.size for n, group in zip(plan.blocks_P, space.prunable, strict=True)]
    return space.bops(BITS[plan.weights_S], BITS[plan.inputs_S], kept)


def largest_gate(losses):
    """The most that one gate or one block saves; from 2 to 8 bits where the gate between is worth nothing."""
    gates = [loss_SK[:, 0].max() for loss_SK in (losses.weights_SK, losses.inputs_SK)]
    return max(*gates, *(loss_B.max() for loss_B in losses.blocks))


@settings(max_examples=100, deadline=None)
@given(problem=problems(), where=st.floats(0, 1))
def test_the_budget_is_kept_and_no_plan_is_better_by_more_than_one_gate(problem, where):
    space, losses = problem
    costs, totals = all_plans(space, losses)
    budget = costs.min() * (costs.max() / costs.min()) ** where * (1 + 1e-9)
    plan = allocate(space, losses, at_most(space, budget))
    assert bops_of(plan, space) <= budget
    best = totals[costs <= budget].min()
    assert best - 1e-12 <= loss_of(plan, losses) <= best + largest_gate(losses) + 1e-12


@pytest.mark.parametrize(("groups", "share", "mean"), [([], 0.88, 0.036), ([3, 5], 0.8, 0.055)])
def test_most_plans_are_the_best_ones(groups, share, mean):
    rng, excess = np.random.default_rng(0), []
    for _ in range(60):
        space, losses = problem_of(rng, 3, groups)
        costs, totals = all_plans(space, losses)
        for where in (0.2, 0.4, 0.6, 0.8):
            budget = costs.min() * (costs.max() / costs.min()) ** where
            best = totals[costs <= budget].min()
            excess.append(loss_of(allocate(space, losses, at_most(space, budget)), losses) / best - 1)
    assert np.mean(np.array(excess) < 1e-9) > share and np.mean(excess) < mean


@settings(max_examples=60, deadline=None)
@given(problem=problems(prune=False), price=st.floats(1e-7, 1e-2))
def test_a_budget_that_one_price_spends_exactly_gets_the_best_plan(problem, price):
    space, losses = problem
    costs, totals = all_plans(space, losses)
    on_hull = np.lexsort((costs, totals + price * costs))[0]
    plan = allocate(space, losses, at_most(space, costs[on_hull] * (1 + 1e-9)))
    assert loss_of(plan, losses) == pytest.approx(totals[on_hull], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(problem=problems(most=4))
def test_a_larger_budget_does_not_cost_more(problem):
    # One price and a greedy rest do not promise it strictly (none was seen in 5400 random problems): 2 % of a gate.
    space, losses = problem
    cheapest, dearest = extremes(space)
    found = [
        loss_of(allocate(space, losses, at_most(space, budget * (1 + 1e-9))), losses)
        for budget in np.geomspace(cheapest, dearest, 12)
    ]
    assert all(more <= less + 0.02 * largest_gate(losses) for less, more in itertools.pairwise(found))
    assert found[-1] == 0


@settings(max_examples=30, deadline=None)
@given(problem=problems(), factor=st.floats(0.01, 0.999))
def test_an_unreachable_budget_gets_the_cheapest_plan(problem, factor):
    space, losses = problem
    cheapest, _ = extremes(space)
    plan = allocate(space, losses, at_most(space, cheapest * factor))
    assert bops_of(plan, space) == pytest.approx(cheapest)
    assert type(plan.price) is float  # checkpoints are loaded without NumPy's types


@settings(max_examples=30, deadline=None)
@given(problem=problems(), factor=st.floats(1, 100))
def test_a_generous_budget_loses_nothing(problem, factor):
    space, losses = problem
    _, dearest = extremes(space)
    plan = allocate(space, losses, at_most(space, dearest * factor))
    assert loss_of(plan, losses) == 0
    if losses.weights_SK[:, 1].all() and losses.inputs_SK[:, 1].all():
        assert bops_of(plan, space) == pytest.approx(dearest)


def test_the_fragile_tensors_get_the_bits():
    space = chain([100.0] * 4)
    fragile, robust = [1.0, 0.1, 0.0], [0.001, 0.0001, 0.0]
    losses = Losses(weights_SK=np.array([robust, robust]), inputs_SK=np.array([robust, fragile]), blocks=[])
    plan = allocate(space, losses, at_most(space, 2 * 100 * 64 + 100 * (4 + 16)))
    assert plan.weights_S.tolist() == [0, 0] and plan.inputs_S.tolist() == [0, 2]


def test_bits_that_only_the_finest_level_brings_are_bought():
    # From 2 to 4 bits nothing is saved, so a step at a time would stop there; all layers change at one price.
    space, stuck = chain([100.0] * 6), [1.0, 1.0, 0.0]
    losses = Losses(weights_SK=np.array([stuck] * 4), inputs_SK=np.zeros((4, 3)), blocks=[])
    plan = allocate(space, losses, at_most(space, 2 * 100 * 64 + 100 * (2 * 16 + 2 * 4)))
    assert sorted(plan.weights_S) == [0, 0, 2, 2] and plan.inputs_S.tolist() == [0] * 4


def test_pruning_goes_where_it_costs_least_and_saves_most():
    space = chain([100.0, 400.0, 400.0, 100.0, 100.0, 10.0], [4, 1, 4])
    # Group 1 has a single block and is no choice; 0 lies between large layers, 2 between small ones.
    assert [group.id for group in space.prunable] == ["g0", "g2"]
    ladder = np.array([[1e3, 1e2, 0.0]] * 4)
    for blocks, expected in (
        ([np.full(4, 0.1), np.full(4, 0.1)], (1, 4)),
        ([np.full(4, 10.0), np.full(4, 0.1)], (4, 1)),
    ):
        losses = Losses(weights_SK=ladder, inputs_SK=ladder, blocks=blocks)
        full, least = (space.bops([8] * 4, [8] * 4, [k / 4 for k in kept]) for kept in ((4, 4), expected))
        plan = allocate(space, losses, at_most(space, least * (1 + 1e-9)))
        assert plan.blocks_P.tolist() == list(expected) and bops_of(plan, space) < full


@pytest.mark.parametrize("quantize", [True, False])
def test_only_bits_or_only_blocks(quantize):
    layers = {"a": layer_of_cost(100, group_out="g"), "b": layer_of_cost(100, group_in="g")}
    groups = [] if quantize else [group_of("g", 4)]
    space = space_of(layers, groups, quantize=quantize)
    count = len(space.searched)
    ladder = np.array([[1.0, 0.1, 0.0]] * count).reshape(count, 3)
    losses = Losses(weights_SK=ladder, inputs_SK=ladder, blocks=[np.array([1.0, 2, 3, 4])] * len(groups))
    plan = allocate(space, losses, at_most(space, 0.5 * extremes(space)[1] * (1 + 1e-9)))
    assert len(plan.weights_S) == count and len(plan.blocks_P) == len(groups)
    if quantize:
        assert space.bops(BITS[plan.weights_S], BITS[plan.inputs_S], []) <= 100 * 64
    else:
        assert plan.blocks_P.tolist() == [2]


def priced_in_ms(rng, network, **device):
    """A space whose cost is in milliseconds, and random losses of its choices; float loses nothing."""
    space = space_on(network, device_for(network, **device))
    searched = len(space.searched)
    ladders = [
        np.append(-np.sort(-rng.exponential(size=(searched, len(bits) - 1)), 1), np.zeros((searched, 1)), 1)
        for bits in (space.bits_w, space.bits_a)
    ]
    blocks = [rng.exponential(size=space.blocks(group)) for group in space.prunable]
    return space, Losses(weights_SK=ladders[0], inputs_SK=ladders[1], blocks=blocks)


def used(space, plan):
    bits = np.array(space.bits_w)[plan.weights_S], np.array(space.bits_a)[plan.inputs_S]
    kept = [space.fraction(group, n) for group, n in zip(space.prunable, plan.blocks_P, strict=True)]
    return space.total(*bits, kept, space.cost), space.bops(*bits, kept)


@pytest.mark.parametrize("seed", range(3))
def test_where_all_bits_cost_the_same_none_but_the_finest_and_float_are_taken(seed):
    space, losses = priced_in_ms(np.random.default_rng(seed), small_network())
    limit = 0.7 * space.cost.reference / 3
    plan = allocate(space, losses, [Limit(cost=space.cost, most=limit)])
    bits = np.array(space.bits_w)[plan.weights_S]
    assert set(bits) <= {8, 32} and ((bits == 32) == (plan.inputs_S == len(space.bits_a) - 1)).all()
    ms, _ = used(space, plan)
    assert 0.95 * limit < ms <= limit * (1 + 1e-9)


def test_depthwise_layers_stay_in_float_where_that_is_faster():
    space, losses = priced_in_ms(
        np.random.default_rng(0), small_network(model="mobilenetv2"), float_factor=2.0, depthwise_factor=0.5
    )
    quantized = space.total(*[[8.0] * len(space.searched)] * 2, [1.0] * len(space.prunable), space.cost)
    plan = allocate(space, losses, [Limit(cost=space.cost, most=0.7 * quantized)])
    in_float = dict(zip(space.searched, plan.weights_S == len(space.bits_w) - 1, strict=True))
    depthwise = {name for name in space.searched if space.layers[name].kind == "depthwise"}
    assert depthwise and all(in_float[name] for name in depthwise)
    assert not all(in_float.values())
    # A change of precision that costs more than a whole layer keeps the network in one.
    space, losses = priced_in_ms(
        np.random.default_rng(0),
        small_network(model="mobilenetv2"),
        float_factor=2.0,
        depthwise_factor=0.5,
        switch_us=1e3,
    )
    plan = allocate(space, losses, [Limit(cost=space.cost, most=0.9 * quantized)])
    assert not (plan.weights_S == len(space.bits_w) - 1).any()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), factor=st.floats(0.3, 3), switch_us=st.floats(0, 20), share=st.floats(0.4, 1.2))
def test_plans_with_float_keep_the_budget_and_no_plan_of_one_precision_is_better(seed, factor, switch_us, share):
    space, losses = priced_in_ms(
        np.random.default_rng(seed), NETWORK, float_factor=factor, depthwise_factor=1 / factor, switch_us=switch_us
    )
    dense = [1.0] * len(space.prunable)
    whole = {bits: space.total(*[[bits] * len(space.searched)] * 2, dense, space.cost) for bits in (8.0, 32.0)}
    _, high = space.reachable()
    lost = losses.weights_SK[:, -2].sum() + losses.inputs_SK[:, -2].sum()
    for budget, most_loss in ((whole[8.0], lost), (whole[32.0], 0.0), (share * whole[8.0], np.inf)):
        budget = max(budget, space.cost.reference / high) * (1 + 1e-9)
        plan = allocate(space, losses, [Limit(cost=space.cost, most=budget)])
        assert used(space, plan)[0] <= budget * (1 + 1e-9)
        assert loss_of(plan, losses) <= most_loss + 1e-9


@pytest.mark.parametrize("seed", [3, 33])
def test_the_largest_reduction_in_reach_is_reached_where_fewer_channels_may_cost_more(seed):
    rng, network = np.random.default_rng(seed), small_network()
    device = device_for(network, float_factor=1.0, switch_us=10.0)
    surfaces = [
        surface.model_copy(
            update={
                name: (rng.uniform(0.3, 3) * np.array(rows) * rng.uniform(0.6, 1.6, size=np.shape(rows))).tolist()
                for name, rows in (("ms", surface.ms), ("float_ms", surface.float_ms))
            }
        )
        for surface in device.surfaces
    ]
    space = space_on(network, device.model_copy(update={"surfaces": surfaces}))
    ladder_SK = np.zeros((len(space.searched), len(space.bits_w)))
    blocks = [rng.exponential(size=space.blocks(group)) for group in space.prunable]
    losses = Losses(weights_SK=ladder_SK, inputs_SK=ladder_SK, blocks=blocks)
    least = space.cost.reference / space.reachable()[1]
    for factor in (1, 1.03):
        plan = allocate(space, losses, [Limit(cost=space.cost, most=least * factor)])
        assert used(space, plan)[0] <= least * factor * (1 + 1e-6)


@pytest.mark.parametrize(("ms_share", "bops_share"), [(0.8, 0.4), (0.9, 0.3), (0.6, 0.9)])
def test_two_limits_are_both_kept(ms_share, bops_share):
    space, losses = priced_in_ms(np.random.default_rng(0), small_network())
    assert space.finest_S.sum() == 2, "the first and the last layer have 8 bits or float"
    most_ms, most_bops = ms_share * space.cost.reference / 3, bops_share * space.bops_cost.reference / 16
    limits = [Limit(cost=space.cost, most=most_ms), Limit(cost=space.bops_cost, most=most_bops)]
    plan = allocate(space, losses, limits)
    ms, bops = used(space, plan)
    assert (np.array(space.bits_w)[plan.weights_S][space.finest_S] >= 8).all()
    assert ms <= most_ms * (1 + 1e-6) and bops <= most_bops * (1 + 1e-6)
    alone = [allocate(space, losses, [limit]) for limit in limits]
    for one, limit in zip(alone, limits, strict=True):
        if all(cost <= most * (1 + 1e-9) for cost, most in zip(used(space, one), (most_ms, most_bops), strict=True)):
            assert loss_of(plan, losses) == pytest.approx(loss_of(one, losses)), limit
        assert loss_of(plan, losses) >= loss_of(one, losses) - 0.05  # a further limit never helps, but for rounding


@pytest.mark.parametrize("factor", [1e-14, 1e-6, 1e9])
@pytest.mark.parametrize("target", [40.0, 200.0])
def test_a_factor_of_all_losses_changes_no_plan(target, factor):
    space, rng = search_space(small_network()), np.random.default_rng(0)

    def falling():
        steps = rng.lognormal(0, 2, (len(space.searched), 2))
        return np.stack([steps.sum(1), steps[:, 1], np.zeros(len(steps))], 1)

    weights, inputs = falling(), falling()
    blocks = [rng.lognormal(0, 2, space.blocks(group)) for group in space.prunable]
    first, second = (
        allocate(
            space,
            Losses(weights_SK=weights * f, inputs_SK=inputs * f, blocks=[loss_B * f for loss_B in blocks]),
            reduced(space, target),
        )
        for f in (1.0, factor)
    )
    for kind in ("weights_S", "inputs_S", "blocks_P"):
        assert (getattr(first, kind) == getattr(second, kind)).all()
    assert second.price == pytest.approx(first.price * factor)
