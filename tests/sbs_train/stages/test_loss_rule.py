"""The default rule on a ResNet-20 that sees a few random images: budgets, flips, resuming, modes."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.loss_rule import LossRule
from sbs_train.stages.search import search_space
from tests.sbs_train.small import image_batches, reduced, small_network

STEPS = 20


def rule_of(network, target, steps):
    space = search_space(network)
    return LossRule(network, space, reduced(space, target), steps)


class Search:
    """A rule at work: what the search does at every step, and nothing else."""

    def __init__(self, target=60.0, steps=STEPS, **changes):
        torch.manual_seed(0)
        self.network = small_network(**changes)
        self.rule = rule_of(self.network, target, steps)
        self.optimizer = torch.optim.SGD(self.network.model.parameters(), lr=0.02)
        self.batches = list(image_batches(self.network, steps))
        self.scalars, self.views = [], []

    def run(self, first, last):
        for step in range(first, last):
            x, y = self.batches[step]
            self.rule.before(step)
            loss = F.cross_entropy(self.network.model.train()(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scalars.append({k: float(v) for k, v in self.rule.after(step, len(x)).items()})
            self.views.append(self.rule.view())
        return self

    def state(self):
        parts = {"model": self.network.model, "optimizer": self.optimizer, **self.rule.state}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def load(self, state):
        parts = {"model": self.network.model, "optimizer": self.optimizer, **self.rule.state}
        for name, part in parts.items():
            part.load_state_dict(state[name])


@pytest.fixture(scope="module")
def finished():
    return Search().run(0, STEPS)


def test_it_starts_at_the_finest_bits_and_meets_the_target_from_its_first_decision_on(finished):
    warm_up = STEPS // 4
    reductions = [row["reduction"] for row in finished.scalars]
    assert reductions[:warm_up] == pytest.approx([16.0] * warm_up)
    assert all(60 <= reduction <= 63 for reduction in reductions[warm_up:])
    assert {row["lambda"] for row in finished.scalars[:warm_up]} == {0.0}
    assert all(row["lambda"] > 0 for row in finished.scalars[warm_up:])


@pytest.mark.parametrize("target", [18.0, 30.0, 63.0, 125.0, 200.0, 250.0])
def test_plans_meet_any_target(finished, target):
    network = small_network()
    rule = rule_of(network, target, STEPS)
    rule.sensitivity.load_state_dict(finished.rule.sensitivity.state_dict())
    plan = rule.plan()
    assert target <= plan.cost.reduction <= target * 1.05
    for row in plan.layers:
        layer = network.layers[row.name]
        assert (layer.bits_w, layer.bits_a) == (row.bits_w, row.bits_a)
    view = rule.view()
    assert view.bits_w == {name: plan.layer(name).bits_w for name in rule.space.searched}
    assert view.bits_a == {name: plan.layer(name).bits_a for name in rule.space.searched}
    assert view.kept == {group.id: len(plan.group(group.id).kept) for group in rule.space.prunable}


def test_targets_out_of_reach_get_the_cheapest_or_the_dearest_plan(finished):
    for target, end in ((5000.0, 0), (1.0, 1)):
        network = small_network()
        rule = rule_of(network, target, STEPS)
        rule.sensitivity.load_state_dict(finished.rule.sensitivity.state_dict())
        assert rule.plan().cost.reduction == pytest.approx(rule.space.reachable()[1 - end])


def test_the_filters_that_matter_least_go(finished):
    network = small_network()
    rule = rule_of(network, 240.0, STEPS)
    rule.sensitivity.load_state_dict(finished.rule.sensitivity.state_dict())
    plan, losses, pruned = rule.plan(), rule.sensitivity.losses(), 0
    for group, loss_B in zip(rule.space.prunable, losses.blocks, strict=True):
        kept = {channel // 4 for channel in plan.group(group.id).kept}
        pruned += len(loss_B) - len(kept)
        assert kept == set(np.argsort(-loss_B)[: len(kept)])
        assert len(kept) >= rule.space.blocks(group) - rule.space.prunable_blocks(group)
    assert pruned


def test_flips_count_the_gates_that_moved(finished):
    bits, size = (2, 4, 8), finished.network.config.search.group_size
    for (before, after), row in zip(itertools.pairwise(finished.views), finished.scalars[1:], strict=True):
        levels = sum(
            abs(bits.index(getattr(after, kind)[name]) - bits.index(getattr(before, kind)[name]))
            for kind in ("bits_w", "bits_a")
            for name in before.bits_w
        )
        blocks = sum(abs(after.kept[name] - before.kept[name]) // size for name in before.kept)
        # A block that another one replaced is two gates, which the numbers of channels do not show.
        assert row["flips"] >= levels + blocks and (row["flips"] - levels - blocks) % 2 == 0
    assert finished.scalars[STEPS // 4]["flips"] > 20 and finished.scalars[0]["flips"] == 0


def test_after_the_settling_no_gate_moves(finished):
    settled = int(0.7 * STEPS)
    assert sum(row["flips"] for row in finished.scalars[STEPS // 4 : settled]) > 0
    assert all(row["flips"] == 0 for row in finished.scalars[settled:])
    assert all(view == finished.views[-1] for view in finished.views[settled:])


@pytest.mark.parametrize("stop", [3, 16])
def test_a_resumed_search_takes_the_same_decisions(finished, stop):
    state = Search().run(0, stop).state()
    resumed = Search()
    resumed.load(state)
    resumed.run(stop, STEPS)
    assert resumed.scalars == finished.scalars[stop:] and resumed.views == finished.views[stop:]
    for ours, theirs in zip(resumed.network.model.parameters(), finished.network.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stop", [2, 12, 16])
def test_a_frozen_network_is_thawed_by_the_next_step(stop):
    plain, frozen = Search(target=240.0).run(0, stop), Search(target=240.0).run(0, stop)
    layers, space = frozen.network.layers, frozen.rule.space
    plan = frozen.rule.plan()
    pruned = [group for group in space.prunable if len(plan.group(group.id).kept) < group.size]
    assert pruned
    assert all(layers[name].probe_w is None and layers[name].probe_a is None for name in space.searched)
    for group in pruned:
        assert all(not layers[name].mask_in.requires_grad for name in group.consumers)
    if stop == 2:  # what `plan` decided so early stays
        frozen.run(stop, stop + 1)
        assert frozen.scalars[-1]["reduction"] >= 240
    else:
        plain.run(stop, stop + 2)
        frozen.run(stop, stop + 2)
        assert frozen.scalars == plain.scalars and frozen.views == plain.views
    for name in space.searched:
        assert layers[name].probe_w.grad is not None and layers[name].probe_a.grad is not None
    for group in space.prunable:
        assert all(layers[name].mask_in.requires_grad for name in group.consumers)


@pytest.mark.parametrize(("mode", "target"), [("prune", 1.4), ("quantize", 100.0)])
def test_modes(mode, target):
    search = Search(target, steps=8, mode=mode).run(0, 8)
    plan = search.rule.plan()
    assert target <= plan.cost.reduction <= target * 1.05
    assert {row.quantized for row in plan.layers} == {mode == "quantize"}
    pruned = any(len(group.kept) < group.size for group in plan.groups)
    assert pruned == (mode == "prune")
    margins = {name.partition(":")[0] for name in search.views[-1].margins}
    assert margins == ({"p"} if mode == "prune" else {"w", "a"})


def test_a_network_without_choices_is_searched_without_harm():
    search = Search(1.0, steps=4, mode="prune", max_pruning_ratio=0.0).run(0, 4)
    assert search.rule.plan().cost.reduction == pytest.approx(1)


def test_margins_are_what_a_gate_saves_minus_its_price(finished):
    rule, view = finished.rule, finished.views[-1]
    losses, scalars = rule.losses, finished.scalars[-1]
    # Of what the network costs, and of a single BOP.
    price = scalars["lambda"] * scalars["reduction"] / rule.space.cost.reference
    sizes = {group.id: group.size for group in rule.space.prunable}
    for s in (0, 7, 19):
        name = rule.space.searched[s]
        layer = finished.network.layers[name]
        kept = np.prod([view.kept[g] / sizes[g] for g in (layer.group_in, layer.group_out) if g in view.kept])
        for kind, loss_K, other in (
            ("w", losses.weights_SK[s], view.bits_a[name]),
            ("a", losses.inputs_SK[s], view.bits_w[name]),
        ):
            expected = [
                loss_K[j] - loss_K[j + 1] - price * layer.macs * kept * (b - a) * other
                for j, (a, b) in enumerate(((2, 4), (4, 8)))
            ]
            # A difference of larger numbers: rounding is relative to those.
            largest = price * layer.macs * kept * 8 * other
            assert view.margins[f"{kind}:{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-6 * largest)


def test_blocks_that_do_not_fill_their_group_are_counted_as_they_are(monkeypatch):
    # 6 channels by blocks of 4: two are in the last block, and here they are the ones that stay.
    network = small_network("prune", width=6)
    rule = rule_of(network, 1.05, STEPS)
    none = np.zeros((0, 1))
    blocks = [np.arange(rule.space.blocks(group), dtype=float) for group in rule.space.prunable]
    losses = Losses(weights_SK=none, inputs_SK=none, blocks=blocks)
    monkeypatch.setattr(rule.sensitivity, "losses", lambda: losses)
    plan, view = rule.plan(), rule.view()
    assert plan.group("layer1.0.conv1").kept == [4, 5] and plan.cost.reduction >= 1.05
    assert view.kept == {group.id: len(plan.group(group.id).kept) for group in rule.space.prunable}
    assert float(rule.after(0, 8)["reduction"]) == pytest.approx(plan.cost.reduction)
