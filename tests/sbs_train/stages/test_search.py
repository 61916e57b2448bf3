"""The search gives bits to the layer that needs them: a net with one insensitive and one fragile layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.contract.rundir import create_run
from sbs_train.inputs.data import Dataset, Split
from sbs_train.stages import plans
from sbs_train.stages.context import open_context
from sbs_train.stages.plans import build_network
from sbs_train.stages.search import search

CHANNELS, CLASSES = 8, 8


class Branches(nn.Module):
    """Two branches of the same shape: one carries everything, the other next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.fragile = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.insensitive = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x):
        y = F.relu(self.stem(x))
        y = F.relu(self.fragile(y) + 1e-4 * self.insensitive(y))
        return self.head(y.mean((2, 3)))


def brightness_data():
    """Classes are evenly spaced levels of brightness: telling them apart takes a finely graded activation."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        noise = torch.randint(-6, 7, (count, 1, 8, 8), generator=generator)
        return Split(images=(30 + 28 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8), labels=labels)

    return Dataset(
        name="brightness",
        input=InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.25]),
        num_classes=CLASSES,
        shift=0,
        flip=False,
        train=split(1024),
        val=split(256),
        test=split(256),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch.manual_seed(0)
    data, model = brightness_data(), Branches()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for x, y in data.train_batches(64, 0, 300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    config = TrainConfig(
        target="76x",  # one of the two layers at 4 bits and the other at 2
        batch_size=64,
        search=SearchConfig(epochs=4, steps_per_epoch=40, lr=0.002, quantize_residual=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "build_model", lambda *_: model)
        network = build_network(config, ModelSpec(name="branches", width=CHANNELS, num_classes=CLASSES), data.input)
    network.set_grids({name: name == "stem" for name in network.layers})
    for layer in network.layers.values():
        layer.set_clips([1.5, 2.5, 4.0][-len(layer.grid_w.bits) :], [2.0, 3.0, 4.0][-len(layer.grid_a.bits) :])
    # The searched layers read the same tensor, so its clip values are the same for both.
    ctx = open_context(create_run(tmp_path_factory.mktemp("run") / "one"), config, data)
    plan = search(ctx, network, "calibrated by hand").plan
    return plan


def test_the_fragile_layer_gets_more_bits_than_the_insensitive_one(found):
    assert 76 <= found.cost.reduction < 80
    layers = {row.name: row for row in found.layers}
    fragile, insensitive = layers["fragile"], layers["insensitive"]
    assert (insensitive.bits_w, insensitive.bits_a) == (2, 2)
    assert fragile.bits_w * fragile.bits_a == 16 and fragile.bits_a >= 4
