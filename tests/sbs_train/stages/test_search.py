"""The search as a whole gives bits to the layers that need them: a network with an insensitive and a fragile one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs import models
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit
from sbs_train.stages.train import train as train_run
from sbs_train.tasks import load

CLASSES = 8
SETTINGS = TrainConfig(
    model="uneven",
    target="17x",
    mode="quantize",
    batch_size=64,
    pretrain=PretrainConfig(epochs=4, steps_per_epoch=50, lr=0.05),
    search=SearchConfig(epochs=3, steps_per_epoch=30, quantize_residual=False),
    finetune=FinetuneConfig(epochs=1, steps_per_epoch=20),
)


class Uneven(nn.Module):
    """Tells how bright an image is. `branch` is a residual branch, `loudness` times as loud as the rest; all that the
    network knows passes through the one number that `expand` reads. Both cost 256 MACs.
    """

    def __init__(self, loudness, classes):
        super().__init__()
        self.loudness = loudness
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.branch = nn.Conv2d(16, 16, 1)
        self.squeeze = nn.Conv2d(16, 1, 1)
        self.expand = nn.Conv2d(1, 256, 1)
        self.fc = nn.Linear(256, classes)

    def forward(self, x):
        x = F.relu(self.stem(x)).mean((2, 3), keepdim=True)
        x = F.relu(x + self.loudness * self.branch(x))
        return self.fc(F.relu(self.expand(self.squeeze(x))).flatten(1))


def brightness(count, seed):
    """Noisy grey images whose classes are separate intervals of brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    level = (labels + 0.2 + 0.6 * torch.rand(count, generator=generator)) / CLASSES
    noise = 4 * torch.randn(count, 1, 6, 6, generator=generator)
    return MemorySplit(images=(255 * level.view(-1, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8), labels=labels)


def brightness_data():
    """Images of brightness in three splits."""
    return MemoryDataset(
        name="brightness",
        input=InputSpec(channels=1, height=6, width=6, mean=[0.5], std=[0.25]),
        num_classes=CLASSES,
        shift=0,
        flip=False,
        train=brightness(2000, 0),
        val=brightness(500, 1),
        test=brightness(500, 2),
    )


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """The plan and metrics of a run on the brightness of images, for a loudness and a seed."""
    data = brightness_data()

    def train(loudness, seed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, "dataset_of", lambda *_: data)
            patch.setitem(models.BUILDERS, "uneven", lambda width, channels, classes: Uneven(loudness, classes))
            return train_run(dataclasses.replace(SETTINGS, seed=seed), tmp_path_factory.mktemp("runs") / "one")

    return train


@pytest.fixture(scope="module")
def quiet(compressed):
    return compressed(0.01, 0)


def check_bits(outcome):
    bits = {row.name: (row.bits_w, row.bits_a) for row in outcome.plan.layers}
    assert bits["branch"] == (2, 2) and bits["expand"] == (8, 8)
    assert outcome.metrics.finetune.score > 95


def test_an_insensitive_layer_gets_the_fewest_bits_and_a_fragile_one_the_most(compressed, quiet):
    check_bits(quiet)
    check_bits(compressed(0.01, 1))


def test_the_same_layer_gets_more_bits_where_it_matters(compressed, quiet):
    # Bits that the loud branch takes are bits that the bottleneck loses: the budget is the same.
    products = [
        {row.name: row.bits_w * row.bits_a for row in plan.layers} for plan in (quiet.plan, compressed(1.0, 0).plan)
    ]
    assert products[1]["branch"] > products[0]["branch"] and products[1]["expand"] < products[0]["expand"]


def test_the_same_seed_finds_the_same_plan(compressed, quiet):
    assert compressed(0.01, 0).plan == quiet.plan
