"""What a network runs and what has to stay in float, on networks made to be difficult."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from sbs_train.network.census import census_of
from sbs_train.network.channels import topology_of

IMAGE = Example.of(torch.zeros(2, 3, 8, 8))


class Special(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Difficult(nn.Module):
    """A subclass, a layer that runs twice, tied weights, a functional convolution, a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.special = Special(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.tied_a, self.tied_b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.tied_b.weight = self.tied_a.weight
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.idle = nn.Linear(8, 8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.special(F.relu(self.stem(x)))
        x = self.twice(self.twice(x))
        x = F.conv2d(self.tied_b(self.tied_a(x)), self.kernel)
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def census():
    return census_of(Difficult().eval(), IMAGE)


def test_every_layer_that_runs_is_counted_once_a_call(census):
    assert list(census.ran) == ["stem", "special", "twice", "tied_a", "left", "right", "head"]
    assert census.ran["stem"].macs == 27 * 8 * 64 and census.ran["head"].macs == 40
    assert census.ran["twice"].macs == census.ran["tied_a"].macs == 2 * census.ran["left"].macs
    assert census.ran["twice"].calls == census.ran["tied_a"].calls == 2
    assert census.ran["tied_a"].modules == ("tied_a", "tied_b") and census.idle == ["idle"]
    assert census.other_macs == 8 * 8 * 64  # F.conv2d


def test_what_stays_in_float_says_why(census):
    reasons = {name: ran.float_reason for name, ran in census.ran.items() if ran.float_reason}
    assert reasons == {
        "special": "Special computes something else than Conv2d",
    }


def test_readers_of_one_tensor_are_known(census):
    assert census.ran["right"].same_input == census.ran["left"].same_input == "left"


def test_groups_that_touch_float_layers_are_left_whole():
    topology = topology_of(Difficult(), IMAGE)
    assert "stays in float" in topology.reasons["stem"]
    assert topology.quantizable == ["stem", "twice", "tied_a", "left", "right", "head"]


class Mixing(nn.Module):
    """A normalisation across channels inside a block: without some of them it computes something else."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.block = nn.Module()
        self.block.expand, self.block.norm = nn.Conv2d(8, 16, 1), nn.GroupNorm(1, 16)
        self.block.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block.project(self.block.norm(self.block.expand(x)))
        return self.head(x.mean((2, 3)))


def test_a_trial_finds_what_cannot_be_pruned_exactly():
    topology = topology_of(Mixing(), IMAGE)
    assert not any(group.prunable for group in topology.groups)
    assert topology.reasons["block.expand"] == "without channels the network computes something else"


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "cannot run inputs of"),
        (nn.Flatten(), "nothing to compress"),
    ],
)
def test_networks_of_no_use_are_refused(network, said):
    with pytest.raises(SbsError, match=said):
        census_of(network, IMAGE)


class MakesLayers(nn.Module):
    """What it makes in its first pass, no optimizer and no file of weights would know."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Linear(4, 2)
        return self.late(self.c(x).mean((2, 3)))


def test_a_network_that_makes_layers_as_it_runs_is_refused():
    model, x = MakesLayers(), IMAGE
    with pytest.raises(SbsError, match=r"makes late\.bias when it first runs; run it once"):
        census_of(model, x)
    assert set(census_of(model, x).ran) == {"c", "late"}


class Positions(nn.Module):
    """A convolution over positions, which no image changes; the image is shifted in place first."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.positions = nn.Conv2d(2, 8, 1)

    def forward(self, x):
        x -= 0.5
        rows = torch.linspace(0, 1, 8).expand(1, 2, 8, 8)
        return self.head((self.stem(x) + self.positions(rows)).mean((2, 3)))


def test_a_layer_that_sees_no_image_stays_in_float():
    network = Positions().eval()
    network.positions.weight.requires_grad_(False)
    census = census_of(network, IMAGE)
    reasons = {name: ran.float_reason for name, ran in census.ran.items()}
    assert reasons == {"stem": "", "positions": "its input does not depend on the network's input", "head": ""}
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["positions.weight"], "left as it was"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 5)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)

    def forward(self, x):
        x_NTC = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x_NTC + self.attention(x_NTC, x_NTC, x_NTC, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("mode", [True, False])
def test_attention_is_counted_even_where_torch_fuses_it(mode):
    census = census_of(Attention().train(mode), Example.of(torch.zeros(2, 3, 16, 16)))
    tokens, width = 16, 24
    assert census.other_macs == 4 * tokens * width * width + 2 * tokens * tokens * width
    assert census.idle == ["attention.out_proj"]


class Remembering(nn.Module):
    """Keeps what it computed, looks at numbers, cuts gradients off, and has a layer behind dead activations."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.dead, self.head = (nn.Conv2d(c, 8, 1) for c in (3, 8, 8, 8))
        self.classes = nn.Linear(8, 5)
        self.register_buffer("mean", torch.zeros(8))
        nn.init.constant_(self.stem.bias, -100.0)

    def forward(self, x):
        self.features = self.stem(x)
        self.mean.mul_(0.9).add_(self.features.mean((0, 2, 3)))
        float(x.numpy().mean())
        gate = torch.sigmoid(self.gate(self.features.detach()))
        return self.classes(self.head(self.features * gate + self.dead(F.relu(self.features))).mean((2, 3)))


def test_a_network_that_keeps_tensors_of_its_pass_is_taken_as_it_is():
    topology = topology_of(Remembering(), IMAGE)
    assert {name: layer.float_reason for name, layer in topology.layers.items()} == dict.fromkeys(
        ("stem", "gate", "dead", "head", "classes"), ""
    )


class Rows(nn.Module):
    """Layers that read samples, tokens of all samples, regions, and first the tokens and then the samples."""

    def __init__(self):
        super().__init__()
        self.samples, self.tokens, self.regions = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.grid, self.axes = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.samples(x)
        regions = self.regions(x.flatten(0, 1)[:3])
        return (
            self.tokens(x.flatten(0, 1)),
            regions,
            self.grid(x.transpose(0, 1)),
            self.axes(x.mean(1)) + self.axes(x)[:, 0],
        )


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_which_layers_read_samples(samples):
    ran = census_of(Rows().eval(), Example.of(torch.zeros(samples, 4, 4))).ran
    assert [name for name, one in ran.items() if one.per_sample] == ["samples", "axes"]
    assert ran["tokens"].macs == 4 * 16 and ran["regions"].macs == round(3 * 16 / samples)
    assert {name: one.float_reason for name, one in ran.items() if one.float_reason} == {
        "axes": "it reads two axes in one call and more in another"
    }
