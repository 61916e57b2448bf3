"""The paper's rule on a ResNet-20 that sees a few random images: turns, lambda, targets, resuming."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sbs_train.contract.config import SearchConfig
from sbs_train.example import Example
from sbs_train.stages.search import search_space
from sbs_train.stages.threshold_rule import ThresholdRule, settling
from tests.sbs_train.small import image_batches, small_network

STEPS = 10


class Search:
    """A rule at work: what the search does at every step, and nothing else."""

    def __init__(self, target=60.0, *, lambda_=None, lr_threshold=0.1, **changes):
        torch.manual_seed(0)
        self.network = small_network(metric="error", lambda_=lambda_, lr_threshold=lr_threshold, **changes)
        self.rule = ThresholdRule(self.network, search_space(self.network), target, STEPS)
        feed = SimpleNamespace(
            examples=lambda seed, _: (Example.of(x) for x, _ in image_batches(self.network, 2, seed=seed))
        )
        self.rule.start(SimpleNamespace(feed=feed, config=self.network.config))
        self.optimizer = torch.optim.SGD(self.network.model.parameters(), lr=0.02)
        self.batches = list(image_batches(self.network, STEPS))
        self.scalars, self.moved = [], []

    def run(self, first, last):
        for step in range(first, last):
            x, y = self.batches[step]
            before = [value.detach().clone() for value in self.rule.bank.parameters()]
            penalty = self.rule.before(step)
            loss = F.cross_entropy(self.network.model.train()(x), y) + penalty
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scalars.append({k: float(v) for k, v in self.rule.after(step, len(x)).items()})
            after = self.rule.bank.named_parameters()
            self.moved.append({n for old, (n, new) in zip(before, after, strict=True) if not torch.equal(old, new)})
        return self

    def parts(self):
        optimizers = {f"optimizer{i}": optimizer for i, (optimizer, _) in enumerate(self.rule.optimizers)}
        return {"model": self.network.model, "optimizer": self.optimizer, **optimizers, **self.rule.state}


@pytest.fixture(scope="module")
def finished():
    return Search().run(0, STEPS)


def test_metrics_start_as_their_own_unit_or_in_units_of_the_grid():
    own, grid = Search(), Search(units="grid")
    for name in own.rule.bank.searched:
        assert own.network.layers[name].metric_w.tolist() == own.network.layers[name].metric_a.tolist() == [1.0, 1.0]
    metrics = torch.stack([grid.network.layers[name].metric_a for name in grid.rule.bank.searched])
    assert metrics.std() > 0.05  # activations differ in their zeros


def test_weight_and_activation_thresholds_take_turns(finished):
    # Pruning thresholds learn with the weights'; Adam's momentum does not move what has no gradient.
    assert finished.moved[:4] == [{"alpha_w", "alpha_p"}, {"alpha_a"}] * 2
    assert Search(alternate=False).run(0, 1).moved == [{"alpha_w", "alpha_p", "alpha_a"}]


def test_lambda_follows_the_controller_or_is_fixed(finished):
    lambdas = [row["lambda"] for row in finished.scalars]
    assert lambdas[0] == pytest.approx(0.05) and len(set(lambdas)) > 5
    fixed = Search(None, lambda_=0.3).run(0, 3)
    assert [row["lambda"] for row in fixed.scalars] == pytest.approx([0.3] * 3)


def test_flips_count_the_tensors_and_groups_that_changed(finished):
    search = Search().run(0, 1)
    flips = []
    for step in range(1, STEPS):
        gates = search.rule._gates
        before = torch.cat([gates.bits_w_L, gates.bits_a_L, gates.fraction_P]).tolist()
        search.run(step, step + 1)
        gates = search.rule._gates
        after = torch.cat([gates.bits_w_L, gates.bits_a_L, gates.fraction_P]).tolist()
        flips.append(sum(a != b for a, b in zip(before, after, strict=True)))
    assert [row["flips"] for row in finished.scalars] == [0, *flips] and sum(flips) > 5


@pytest.mark.parametrize("target", [20.0, 60.0, 150.0])
def test_plans_meet_any_target(finished, target):
    search = Search(target)
    search.rule.bank.load_state_dict(finished.rule.bank.state_dict())
    search.network.model.load_state_dict(finished.network.model.state_dict())
    plan = search.rule.plan()
    assert target <= plan.cost.reduction <= target * 1.05


def test_without_a_target_the_plan_is_what_the_gates_say(finished):
    search = Search(None, lambda_=0.3)
    search.rule.bank.load_state_dict(finished.rule.bank.state_dict())
    search.network.model.load_state_dict(finished.network.model.state_dict())
    view, plan = search.rule.view(), search.rule.plan()
    assert view.bits_w == {name: plan.layer(name).bits_w for name in search.rule.bank.searched}
    assert view.bits_a == {name: plan.layer(name).bits_a for name in search.rule.bank.searched}
    assert view.kept == {group.id: len(plan.group(group.id).kept) for group in search.rule.bank.prunable}
    assert plan.cost.bops == pytest.approx(float(search.rule.bank().cost.detach()), rel=1e-5)
    assert plan.cost.reduction > 20
    for name, (coarse, fine) in ((n, view.margins[f"w:{n}"]) for n in search.rule.bank.searched):
        assert view.bits_w[name] == (2 if coarse <= 0 else 4 if fine <= 0 else 8)


def test_validation_does_not_move_the_metrics(finished):
    search = Search()
    search.rule.before(0)
    search.rule.plan()
    layer = search.network.layers["layer2.0.conv1"]
    before = layer.metric_a.clone()
    search.network.model(search.batches[0][0])
    assert torch.equal(layer.metric_a, before)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resumed_search_takes_the_same_decisions(finished, stop):
    state = copy.deepcopy({name: part.state_dict() for name, part in Search().run(0, stop).parts().items()})
    resumed = Search()
    for name, part in resumed.parts().items():
        part.load_state_dict(state[name])
    resumed.run(stop, STEPS)
    assert resumed.scalars == finished.scalars[stop:]
    assert resumed.rule.view() == finished.rule.view()


def test_thresholds_come_to_rest():
    shape = settling(SearchConfig(settle=(0.5, 0.9)))
    assert [shape(fraction) for fraction in (0.0, 0.5, 0.7, 0.9, 1.0)] == pytest.approx([1, 1, 0.5, 0, 0])
