"""Estimated losses against NumPy on a network of two linear layers, whose gradients are written down by hand."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.grid import make_grid
from sbs_train.quant import sensitivity
from sbs_train.quant.sensitivity import MOMENTUM, SAMPLES, Sensitivity
from sbs_train.quant.swapping import swap_layers
from sbs_train.stages.search import search_space
from tests.sbs_train.small import group_of, image_batches, small_network, space_of

HIDDEN, GROUP_SIZE = 10, 4
BLOCKS = [range(0, 4), range(4, 8), range(8, 10)]
CLIPS_W, CLIPS_A = [1.5, 2.5, 3.0], [2.0, 3.0, 40.0]
"""At 8 bits no input saturates, so the gradient passes the quantizer unchanged."""
ADAPTATION = 0.3


class Linear2:
    """y = W2 W1 x on quantized weights and inputs, its loss the mean over images of |y - t|^2 / 2."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, HIDDEN, bias=False), nn.Linear(HIDDEN, 3, bias=False))
        self.layers = swap_layers(self.model)
        for layer in self.layers.values():
            layer.set_grids(make_grid("weight", (2, 4, 8)), make_grid("signed", (2, 4, 8)))
            layer.set_clips(CLIPS_W, CLIPS_A)
        group = group_of("0", HIDDEN, producers=["0"], consumers=["1"])
        self.space = space_of(self.layers, [group], group_size=GROUP_SIZE, adaptation=ADAPTATION)
        self.sensitivity = Sensitivity(self.space)
        self.sensitivity.attach()

    def step(self, x, t, found=None):
        found = found or self.sensitivity
        found.zero_grad()
        ((self.model(x) - t).square().sum(1) / 2).mean().backward()
        found.observe(len(x))

    def slopes(self, x, t, kept=(0, 1, 2)):
        """d of every image by hand: `weights_SNJ`, `inputs_SNJ` and `blocks_NB`."""
        mask = np.zeros(HIDDEN)
        mask[[c for block in kept for c in BLOCKS[block]]] = 1
        w1, w2 = (self.levels(layer.weight.detach().double().numpy(), "weight") for layer in self.layers.values())
        x1 = self.levels(x.double().numpy(), "signed")
        h = self.levels(x1[-1] @ w1[-1].T, "signed")
        error = h[-1] @ (w2[-1] * mask).T - t.double().numpy()
        back = error @ (w2[-1] * mask)
        weights = [
            [np.einsum("nh,hi,ni->n", back, w1[k] - w1[-1], x1[-1]) for k in range(2)],
            [np.einsum("no,oh,nh->n", error, (w2[k] - w2[-1]) * mask, h[-1]) for k in range(2)],
        ]
        inputs = [
            [np.einsum("nh,hi,ni->n", back, w1[-1], x1[k] - x1[-1]) for k in range(2)],
            [np.einsum("nh,nh->n", back, h[k] - h[-1]) for k in range(2)],
        ]
        channels = np.einsum("no,oh,nh->nh", error, w2[-1], h[-1])
        blocks = [channels[:, list(block)].sum(1) for block in BLOCKS]
        return np.swapaxes(weights, 1, 2), np.swapaxes(inputs, 1, 2), np.stack(blocks, 1)

    @staticmethod
    def levels(values, role):
        sigma = values.std(ddof=1) if role == "weight" else 1.0
        clips = [clip * sigma for clip in (CLIPS_W if role == "weight" else CLIPS_A)]
        grid = make_grid(role, (2, 4, 8)).levels
        return [level.quantize(values, clip) * clip / level.steps for level, clip in zip(grid, clips, strict=True)]


def batches(count, images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(images, 6, generator=generator), torch.randn(images, 3, generator=generator)


def as_choices(half_variance_SJ):
    """As `Losses` gives them: never less for coarser bits, nothing for the finest."""
    padded = np.concatenate([half_variance_SJ, np.zeros((len(half_variance_SJ), 1))], 1)
    return np.stack([np.array([min(row[: k + 1]) for k in range(3)]) for row in padded])


@pytest.mark.parametrize("images", [5, SAMPLES, 40])
def test_inputs_cost_half_the_variance_over_images(images):
    net = Linear2()
    (x, t), *_ = batches(1, images)
    net.step(x, t)
    expected = 0.5 * net.slopes(x[:SAMPLES], t[:SAMPLES])[1].var(1)
    np.testing.assert_allclose(net.sensitivity.losses().inputs_SK, as_choices(expected), rtol=2e-4)


@pytest.mark.parametrize("images", [4, 24])
def test_weights_and_blocks_cost_half_the_variance_between_steps_times_images(images):
    net, steps = Linear2(), 12
    means_w, means_b = [], []
    for x, t in batches(steps, images):
        net.step(x, t)
        weights, _, blocks = net.slopes(x, t)
        means_w.append(weights.mean(1))
        means_b.append(blocks.mean(0))
    share = MOMENTUM ** np.arange(steps)[::-1]
    share /= share.sum()  # what a running mean gives every step, once its start is corrected for

    def half_variance(steps_first):
        values = np.stack(steps_first)
        mean = np.tensordot(share, values, 1)
        return 0.5 * images * np.tensordot(share, (values - mean) ** 2, 1)

    losses = net.sensitivity.losses()
    np.testing.assert_allclose(losses.weights_SK, as_choices(half_variance(means_w)) * ADAPTATION, rtol=2e-3)
    np.testing.assert_allclose(losses.blocks[0], half_variance(means_b) * ADAPTATION, rtol=2e-3)


@pytest.mark.parametrize("images", [4, 16])
def test_both_ways_estimate_the_variance_over_images_whatever_the_batch(images, monkeypatch):
    monkeypatch.setattr(sensitivity, "MOMENTUM", 0.999)  # so many steps count that the noise is small
    net = Linear2()
    for x, t in batches(400, images):
        net.step(x, t)
    (x, t), *_ = batches(1, 20_000, seed=1)
    weights, inputs, blocks = (0.5 * d.var(axis) for d, axis in zip(net.slopes(x, t), (1, 1, 0), strict=True))
    losses = net.sensitivity.losses()
    np.testing.assert_allclose(losses.weights_SK, as_choices(weights) * ADAPTATION, rtol=0.35)
    np.testing.assert_allclose(losses.inputs_SK, as_choices(inputs), rtol=0.35)
    np.testing.assert_allclose(losses.blocks[0], blocks * ADAPTATION, rtol=0.35)


def test_the_running_mean_is_corrected_for_its_start():
    net = Linear2()
    (x, t), *_ = batches(1, 16)
    found = []
    for _ in range(5):
        net.step(x, t)
        found.append(net.sensitivity.losses())
    for later in found[1:]:
        np.testing.assert_allclose(later.inputs_SK, found[0].inputs_SK, rtol=1e-4)
    # The same batch again and again: between steps nothing varies.
    assert found[-1].weights_SK.max() < 1e-4 * found[-1].inputs_SK.max()


def test_a_removed_block_is_judged_by_what_it_would_bring_back():
    net = Linear2()
    net.sensitivity.set_masks([[0, 2]])
    assert net.layers["1"].mask_in.tolist() == [1] * 4 + [0] * 4 + [1] * 2
    means = []
    for x, t in batches(6, 8):
        net.step(x, t)
        means.append(net.slopes(x, t, kept=(0, 2))[2].mean(0))
    found = net.sensitivity.losses().blocks[0]
    share = MOMENTUM ** np.arange(6)[::-1] / (MOMENTUM ** np.arange(6)).sum()
    values = np.stack(means)
    expected = 0.5 * 8 * (share @ (values - share @ values) ** 2) * ADAPTATION
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert found[1] > 0


@pytest.mark.parametrize(("size", "group_size", "blocks"), [(10, 4, 3), (8, 4, 2), (3, 4, 1), (7, 1, 7)])
def test_every_block_has_a_loss(size, group_size, blocks):
    model = nn.Sequential(nn.Linear(4, size), nn.Linear(size, 2))
    layers = swap_layers(model)
    group = group_of("0", size, producers=["0"], consumers=["1"])
    space = space_of(layers, [group], group_size=group_size, quantize=False)
    found = Sensitivity(space)
    found.attach()
    for seed in range(3):
        found.zero_grad()
        model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).square().sum(1).mean().backward()
        found.observe(5)
    losses = found.losses()
    if blocks == 1:  # nothing may go, so it is no choice
        assert losses.blocks == []
    else:
        assert [len(loss_B) for loss_B in losses.blocks] == [blocks] and losses.blocks[0].min() > 0
    assert losses.weights_SK.size == losses.inputs_SK.size == 0


def test_state_round_trip():
    first, second = Linear2(), Linear2()
    sequence = list(batches(6, 8))
    for x, t in sequence[:3]:
        first.step(x, t)
    second.sensitivity.load_state_dict(first.sensitivity.state_dict())
    for net in (first, second):
        for x, t in sequence[3:]:
            net.step(x, t)
    ours, theirs = (net.sensitivity.losses() for net in (first, second))
    assert (ours.weights_SK == theirs.weights_SK).all() and (ours.inputs_SK == theirs.inputs_SK).all()
    assert (ours.blocks[0] == theirs.blocks[0]).all() and first.sensitivity.count == second.sensitivity.count == 6


def test_detached_probes_are_out_of_the_network():
    net = Linear2()
    (x, t), *_ = batches(1, 4)
    net.sensitivity.detach()
    assert all(layer.probe_w is None and layer.probe_a is None for layer in net.layers.values())
    net.step(x, t)
    losses = net.sensitivity.losses()  # a layer that took no part has no slope
    assert losses.inputs_SK.max() == 0
    net.sensitivity.attach()
    net.step(x, t)
    assert net.sensitivity.losses().inputs_SK[:, :2].min() > 0


def test_the_network_computes_the_same_with_probes():
    network = small_network()
    space = search_space(network)
    (x, _), *_ = image_batches(network, 1)
    network.model.eval()
    with torch.no_grad():
        expected = network.model(x)
        found = Sensitivity(space)
        found.attach()
        assert torch.equal(network.model(x), expected)


@pytest.mark.parametrize("images", [3, 20])
def test_estimates_do_not_depend_on_the_memory_layout(images):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = small_network()
        # In double: in float32 the order of sums, which depends on processor and layout, moves values to other codes.
        network.model.double().to(memory_format=layout)
        found = Sensitivity(search_space(network))
        found.attach()
        for x, y in image_batches(network, 3, images):
            found.zero_grad()
            nn.functional.cross_entropy(network.model(x.double().contiguous(memory_format=layout)), y).backward()
            found.observe(images)
        results.append(found.losses())
    for name in ("weights_SK", "inputs_SK"):
        plain, last = (getattr(losses, name) for losses in results)
        np.testing.assert_allclose(plain, last, rtol=1e-2, atol=1e-4 * plain.max())
    for plain, last in zip(results[0].blocks, results[1].blocks, strict=True):
        np.testing.assert_allclose(plain, last, rtol=1e-2, atol=1e-4 * plain.max())


class Adders:
    """Sums over ranks that are threads."""

    def __init__(self, world):
        self.barrier, self.parts = threading.Barrier(world), [None] * world

    def of(self, rank):
        def add(tensor):
            self.parts[rank] = tensor
            self.barrier.wait()
            total = sum(self.parts)
            self.barrier.wait()
            return total

        return add


@pytest.mark.parametrize("world", [2, 3, 5, 20])
@pytest.mark.parametrize("micro", [1, 2, 6])
def test_ranks_hold_the_moments_of_one_process_with_the_whole_batch(world, micro):
    steps = list(batches(4, 6 * world))
    whole = Linear2()
    for x, t in steps:
        whole.step(x, t)
    adders, found = Adders(world), [None] * world
    nets = [Linear2() for _ in range(world)]

    def train(rank):
        net = nets[rank]
        ranked = Sensitivity(net.space, rank=rank, world=world, add=adders.of(rank))
        ranked.attach()
        for x, t in steps:
            mine, own = x[rank::world], t[rank::world]
            ranked.zero_grad()
            for start in range(0, 6, micro):
                part = slice(start, start + micro)
                ranked.start_pass(start)
                ((net.model(mine[part]) - own[part]).square().sum(1) / 2).sum().div(6).backward()
            ranked.observe(6)
        found[rank] = ranked.losses()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = whole.sensitivity.losses()
    for losses in found:
        np.testing.assert_allclose(losses.weights_SK, expected.weights_SK, rtol=1e-3)
        np.testing.assert_allclose(losses.inputs_SK, expected.inputs_SK, rtol=1e-3)
        np.testing.assert_allclose(losses.blocks[0], expected.blocks[0], rtol=1e-3)
        assert (losses.inputs_SK == found[0].inputs_SK).all()


def test_inputs_whose_axis_0_is_no_sample_go_by_whole_batches(monkeypatch):
    monkeypatch.setattr(sensitivity, "MOMENTUM", 0.999)
    net = Linear2()
    net.layers["0"].per_sample = False
    whole = Sensitivity(net.space)
    whole.attach()
    for x, t in batches(400, 8):
        net.step(x, t, whole)
    (x, t), *_ = batches(1, 20_000, seed=1)
    expected = as_choices(0.5 * net.slopes(x, t)[1].var(1))
    np.testing.assert_allclose(whole.losses().inputs_SK, expected, rtol=0.35)


@pytest.mark.parametrize("first", [0, 1])
def test_estimates_of_whole_batches_and_of_samples_keep_their_places(first):
    plain, mixed = Linear2(), Linear2()
    mixed.layers[str(first)].per_sample = False
    found = [Sensitivity(net.space) for net in (plain, mixed)]
    for net, one in zip((plain, mixed), found, strict=True):
        one.attach()
        for x, t in batches(5, 12):
            net.step(x, t, one)
    rows, some = (one.losses().inputs_SK for one in found)
    np.testing.assert_allclose(some[1 - first], rows[1 - first], rtol=1e-5)
    assert some[first, 0] != pytest.approx(rows[first, 0])


def test_a_step_with_gradients_that_are_not_finite_is_left_out():
    net = Linear2()
    (x, t), (x2, t2) = batches(2, 8)
    net.step(x, t)
    before = net.sensitivity.losses()
    net.step(x2, t2 * float("inf"))
    after = net.sensitivity.losses()
    assert net.sensitivity.count == 1 and (after.inputs_SK == before.inputs_SK).all()
