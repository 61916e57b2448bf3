"""What a network does in training is known before it is trained; finding out leaves no trace."""

import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.stages.train import train
from sbs_train.tasks.classification import untried
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.rehearsal import training_problem

INPUT = InputSpec(channels=1, height=8, width=8, mean=[0.0], std=[1.0])
FEED = Feed(task=untried(INPUT, 10))
Outputs = namedtuple("Outputs", ["logits", "aux"])


class Network(nn.Module):
    """Logits of ten classes in evaluation; in training, what `trained` makes of images, features and logits."""

    def __init__(self, trained=lambda x, f, y: y, norm=nn.BatchNorm2d):
        super().__init__()
        self.c, self.n, self.f = nn.Conv2d(1, 8, 3), norm(8), nn.Linear(8, 10)
        self.drop, self.trained = nn.Dropout(0.5), trained

    def forward(self, x):
        features = self.n(self.c(x).mean((2, 3), keepdim=isinstance(self.n, nn.BatchNorm2d))).flatten(1)
        logits = self.f(self.drop(features))
        return self.trained(x, features, logits) if self.training else logits


def needs_targets(x, f, y):
    raise TypeError("targets should not be none when in training mode")


def changed_in_place(x, f, y):
    z = f.exp()
    return y + z.mul_(2).sum() * z.sum() if f.exp_() is not None else y


FAULTS = {
    "tuple": (lambda x, f, y: (y, f), "tuple (Tensor [2, 10], Tensor [2, 8])"),
    "list": (lambda x, f, y: [y], "list (Tensor [2, 10])"),
    "dict": (lambda x, f, y: {"out": y, "aux": f}, "dict with out, aux"),
    "namedtuple": (lambda x, f, y: Outputs(y, f), "Outputs (Tensor"),
    "None": (lambda x, f, y: None, "NoneType"),
    "features": (lambda x, f, y: f, "8 logits, the data has 10 classes"),
    "loss": (lambda x, f, y: y.logsumexp(1).mean(), "the model returns []"),
    "maps": (lambda x, f, y: y[:, :, None, None], "the model returns [2, 10, 1, 1]"),
    "targets": (needs_targets, "targets should not be none"),
    "small images": (lambda x, f, y: nn.functional.conv2d(x, torch.ones(1, 1, 9, 9)), "greater than actual input"),
    "no gradient": (lambda x, f, y: y.detach(), "does not require grad"),
    "classes": (lambda x, f, y: y.argmax(1), "the model returns [2]"),
    "in place": (changed_in_place, "inplace operation"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_training_cannot_use_is_named(kind):
    trained, said = FAULTS[kind]
    problem = training_problem(Network(trained), FEED, 16)
    assert said in problem and "wrap the model" in problem and "\n" not in problem


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_one_image_at_a_time_needs_statistics_over_more_than_one_value(norm):
    problem = training_problem(Network(norm=norm), FEED, 1)
    assert "--batch-size" in problem and "Expected more than 1 value" in problem
    assert not training_problem(Network(norm=norm), FEED, 2)
    assert not training_problem(Network(norm=nn.LayerNorm if norm is nn.BatchNorm1d else nn.Identity), FEED, 1)


def test_too_few_logits_for_the_labels():
    assert "10 logits, the data has 100 classes" in training_problem(Network(), Feed(task=untried(INPUT, 100)), 4)
    assert not training_problem(Network(), FEED, 4)


def test_it_leaves_no_trace():
    torch.manual_seed(3)
    model = Network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert not training_problem(model, FEED, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        ("return (y, y) if self.training else y", {}, "tuple"),
        ("return y", {"batch_size": 1}, "--batch-size"),
        ("return y", {"batch_size": 4, "accumulate": 4}, "--batch-size"),
    ],
)
def test_a_run_is_refused_before_it_writes_anything(tmp_path, body, options, said):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.c, self.n, self.f = nn.Conv2d(1, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        y = self.f(self.n(self.c(x).mean((2, 3))))\n"
        f"        {body}\n"
    )
    config = TrainConfig(model=f"{tmp_path}/mine.py:Net", device="cpu", target="8x", **options)
    with pytest.raises(SbsError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
