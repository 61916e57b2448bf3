"""Classification's loss and metrics against NumPy, smoothed and mixed in training only."""

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit
from sbs_train.tasks.classification import Classification
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.protocol import Divided, Share

CLASSES = 7


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)

    def split(count):
        images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
        return MemorySplit(images=images, labels=torch.randint(CLASSES, (count,), generator=generator))

    spec = InputSpec(channels=1, height=4, width=4, mean=[0.5], std=[0.25])
    splits = {"train": split(40), "val": split(20), "test": split(33)}
    return MemoryDataset(name="noise", input=spec, num_classes=CLASSES, shift=1, flip=False, **splits)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def log_p(model, x):
    logits = model(x).detach().numpy().astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_metrics_are_those_of_numpy(data, model):
    found = Classification(data=data, batch_size=8).evaluate(model, "test")
    log = log_p(model, data.normalise(data.test.images))
    labels = data.test.labels.numpy()
    order = np.argsort(-log, 1)
    assert list(found) == ["top1", "top5", "loss", "images"] and found["images"] == 33
    assert found["top1"] == pytest.approx(100 * (order[:, 0] == labels).mean())
    assert found["top5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean())
    assert found["loss"] == pytest.approx(-log[np.arange(33), labels].mean(), rel=1e-5)
    shares = [Share(rank=rank, world=2) for rank in (0, 1)]
    parts = [Classification(data=data, batch_size=8).shared(share).sample_losses(model, None) for share in shares]
    assert torch.cat(parts).mean() == pytest.approx(Classification(data=data).evaluate(model, "val")["loss"], rel=1e-5)


def test_smoothing_and_mixing_count_in_training_only(data, model):
    task = Classification(data=data, batch_size=8, label_smoothing=0.1, mixup=0.4)
    assert isinstance(task, Divided)
    batch = next(iter(task.train_batches(0)))
    plain = Classification(data=data, batch_size=8)
    assert torch.equal(task.loss(model.eval(), batch), plain.loss(model, batch))
    model.train()
    x, y = batch
    torch.manual_seed(3)
    found = task.loss(model, batch)
    torch.manual_seed(3)
    part = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(len(y))
    log = log_p(model, part * x + (1 - part) * x[other])
    one_hot = np.eye(CLASSES)
    target = part * one_hot[y] + (1 - part) * one_hot[y[other]]
    expected = -((0.9 * target + 0.1 / CLASSES) * log).sum(1).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    model.eval()


def test_micro_batches_of_a_feed_are_the_batch(data):
    feed = Feed(task=Classification(data=data, batch_size=8), accumulate=4)
    for parts, (x, y) in zip(feed.steps(5, 3), feed.task.batches(5, 3), strict=True):
        assert len(parts) == 4 and torch.equal(torch.cat([p[0] for p in parts]), x)
        assert torch.equal(torch.cat([p[1] for p in parts]), y)
    assert [one.samples for one in feed.examples(5, 2)] == [8, 8] and feed.steps_per_epoch == 5
