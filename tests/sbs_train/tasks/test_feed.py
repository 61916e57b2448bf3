"""Which batches of a user's task a rank and a micro-batch get, and that a resumed run gets the same."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from sbs_train.contract.errors import SbsError
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.protocol import Share, measure_of, score_of


class Numbers:
    """Batches are tensors of one number each; an epoch of a seed starts at the seed's multiple of 100."""

    def __init__(self, batches=7, metrics=None):
        self.count, self.metrics = batches, metrics or {"score": 1.0}

    def train_batches(self, seed):
        return (torch.tensor([float(index)]) for index in range(self.count))

    def inputs(self, batch):
        return batch

    def loss(self, model, batch):
        return model(batch).mean()

    def evaluate(self, model, split):
        return self.metrics


class Shuffled(Numbers):
    """A loader that draws its order, and samples that draw noise, from the global generators."""

    def train_batches(self, seed):
        noise = lambda rows: rows[0][0] + 1e-3 * (torch.rand(1) + random.random() + np.random.rand())  # noqa: E731
        return DataLoader(TensorDataset(torch.arange(9.0)), batch_size=1, shuffle=True, collate_fn=noise)


def drawn(feed, seed, steps, first=0):
    return [[float(batch) for batch in parts] for parts in feed.steps(seed, steps, first=first)]


@given(world=st.integers(1, 3), accumulate=st.integers(1, 3), steps=st.integers(1, 6), first=st.integers(0, 5))
def test_ranks_and_micro_batches_share_the_batches_in_their_order(world, accumulate, steps, first):
    feeds = [Feed(task=Numbers(), accumulate=accumulate, share=Share(rank=r, world=world)) for r in range(world)]
    shares = [drawn(feed, 3, steps, first) for feed in feeds]
    assert all(len(parts) == accumulate for share in shares for parts in share)
    together = [
        shares[rank][step][part]
        for step in range(max(0, steps - first))
        for part in range(accumulate)
        for rank in range(world)
    ]
    stride = world * accumulate
    epochs = itertools.chain.from_iterable(range(7) for _ in range(steps * stride))  # one epoch after the other
    assert together == list(itertools.islice(epochs, first * stride, max(first, steps) * stride))
    assert feeds[0].steps_per_epoch == max(1, 7 // stride)


def test_a_resumed_run_draws_what_a_whole_one_does():
    feed = Feed(task=Shuffled())
    whole = drawn(feed, 5, 12)
    torch.rand(7), random.random(), np.random.rand(3)
    assert drawn(feed, 5, 12, first=4) == whole[4:]
    assert sorted(int(batch) for (batch,) in whole[:9]) == list(range(9)) and drawn(feed, 6, 12) != whole


def test_drawing_leaves_the_generators_alone():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    drawn(Feed(task=Shuffled()), 5, 3)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_an_epoch_is_counted_where_it_has_no_length():
    assert Feed(task=Shuffled()).steps_per_epoch == 9 and Feed(task=Numbers(5), accumulate=2).steps_per_epoch == 2
    with pytest.raises(SbsError, match="gave no batch"):
        _ = Feed(task=Numbers(0)).steps_per_epoch


def test_a_score_comes_first_and_the_loss_decides_between_plans():
    assert score_of({"miou": 3.0, "loss": 0.5}) == ("miou", 3.0)
    assert measure_of({"miou": 3.0, "loss": 0.5}) == ("loss", 0.5) and measure_of({"miou": 3.0}) == ("-miou", -3.0)


@pytest.mark.parametrize(
    "metrics",
    [{"loss": 1.0}, {"score": torch.tensor(1.0)}, {"score": True}, {"score": "good"}, {1: 1.0}, 0.5, [("score", 1.0)]],
)
def test_what_is_no_metric_is_refused(metrics):
    with pytest.raises(SbsError):
        Feed(task=Numbers(metrics=metrics)).evaluate(None, "val")


def test_an_epoch_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("sbs_train.tasks.feed.UNCOUNTED", 50)
    assert Feed(task=Numbers(50)).steps_per_epoch == 50
    with pytest.raises(SbsError, match="train_batches"):
        _ = Feed(task=Numbers(51)).steps_per_epoch


def test_batches_that_are_none_are_refused():
    task = Numbers()
    task.train_batches = lambda seed: None
    with pytest.raises(SbsError, match="train_batches"):
        next(Feed(task=task).steps(0, 1))
