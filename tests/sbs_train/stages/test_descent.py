"""A step over a batch in parts, and what is changed about a network while it trains."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import Launch, this_launch
from sbs_train.contract.plan import InputSpec
from sbs_train.contract.rundir import RunDir
from sbs_train.stages import context
from sbs_train.stages.context import Context, check_batch, check_device, open_fabric
from sbs_train.stages.descent import _synchronised, _unused, _without_gradients, descent
from sbs_train.stages.loss_rule import LossRule
from sbs_train.stages.search import search_space
from sbs_train.stages.threshold_rule import ThresholdRule
from sbs_train.tasks.classification import untried
from sbs_train.tasks.feed import Feed
from tests.sbs_train.small import image_batches, reduced, small_network
from tests.sbs_train.stages.ranked import CONFIG

STEPS, IMAGES = 12, 24


def context_of(network, tmp_path, **changes):
    config = dataclasses.replace(network.config, device="cpu", **changes)
    fabric, ranks = open_fabric(config)
    task = untried(InputSpec(channels=1, height=8, width=8, mean=[0.0], std=[1.0]), 10)
    feed = Feed(task=task, accumulate=config.accumulate)
    return Context(run=RunDir(tmp_path), config=config, feed=feed, fabric=fabric, curves=None, ranks=ranks)


def step_of(down, ctx, batch, **more):
    """One step over a batch in the micro-batches of the settings."""
    return down.step(ctx.feed.task.parts(batch, ctx.config.accumulate), **more)


def calm(network):
    """BatchNorm by its running statistics, which makes images independent of one another."""
    network.model.train()
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def searched(tmp_path, kind, accumulate):
    """Losses, scalars and parameters of a few steps of the search."""
    torch.manual_seed(0)
    network = small_network(metric="loss" if kind is LossRule else "error", lr_threshold=0.1)
    space = search_space(network)
    rule = kind(network, space, reduced(space, 60.0) if kind is LossRule else 60.0, STEPS)
    network.model.eval()
    rows = []
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.02)
    ctx = context_of(network, tmp_path, accumulate=accumulate)
    with descent(ctx, network, optimizer) as down:
        for step, (x, y) in enumerate(image_batches(network, STEPS, IMAGES)):
            calm(network)
            penalty = rule.before(step)
            loss = step_of(down, ctx, (x, y), penalty=penalty, before_part=rule.before_part)
            rows.append([float(loss), *map(float, rule.after(step, len(x)).values())])
    return np.array(rows), rule.view(), [p.detach().numpy() for p in network.model.parameters()]


# The rule of thresholds measures errors on 8 images of the first micro-batch: 4 parts of 6 images would be too small.
@pytest.mark.parametrize(("kind", "parts"), [(LossRule, 4), (ThresholdRule, 3)])
def test_micro_batches_change_neither_the_gates_nor_the_steps(tmp_path, kind, parts):
    whole, split = (searched(tmp_path, kind, accumulate) for accumulate in (1, parts))
    np.testing.assert_allclose(split[0], whole[0], rtol=2e-3, atol=1e-4)
    assert (split[1].bits_w, split[1].bits_a, split[1].kept) == (whole[1].bits_w, whole[1].bits_a, whole[1].kept)
    for ours, theirs in zip(split[2], whole[2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_one_part_gives_the_bits_of_a_plain_step(tmp_path):
    networks = [small_network(), small_network()]
    (x, y), *_ = image_batches(networks[0], 1)
    optimizers = [torch.optim.SGD(network.model.parameters(), lr=0.1) for network in networks]
    ctx = context_of(networks[0], tmp_path)
    with descent(ctx, networks[0], optimizers[0]) as down:
        networks[0].model.train()
        loss = step_of(down, ctx, (x, y))
    expected = nn.functional.cross_entropy(networks[1].model.train()(x), y)
    expected.backward()
    optimizers[1].step()
    networks[1].clamp_clips()
    assert torch.equal(loss, expected.detach())
    for ours, theirs in zip(*(network.model.state_dict().values() for network in networks), strict=True):
        assert torch.equal(ours, theirs)


def test_clip_values_of_a_float_network_and_layers_that_never_run_want_no_gradient(tmp_path):
    network = small_network("prune")
    network.model.register_module("idle", nn.Linear(3, 3))
    unused = _unused(context_of(network, tmp_path), network)
    names = {name for name, p in network.model.named_parameters() if any(p is other for other in unused)}
    assert {"idle.weight", "idle.bias", "conv1.clip_w", "fc.clip_a"} <= names
    assert not [name for name in names if name.endswith("weight") and name != "idle.weight"]
    with _without_gradients(unused):
        assert not any(p.requires_grad for p in unused)
    assert all(p.requires_grad for p in network.model.parameters())
    quantized = small_network()
    assert {p.numel() for p in _unused(context_of(quantized, tmp_path), quantized)} <= {0}


def test_synchronised_batchnorm_stands_in_and_shares_its_state():
    network = small_network()
    before = {name: module for name, module in network.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    (x, _), *_ = image_batches(network, 1)
    expected = network.model.eval()(x)
    with _synchronised(network.model):
        found = [m for m in network.model.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert len(found) == len(before) and torch.equal(network.model.eval()(x), expected)
        found[0].running_mean.fill_(7)
        found[0].weight.data.fill_(3)
    after = {name: module for name, module in network.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert after == before
    first = next(iter(after.values()))
    assert first.running_mean.tolist() == [7.0] * 8 and first.weight.tolist() == [3.0] * 8


def shared_out(config):
    check_batch(config, config.batch_size)


@pytest.mark.parametrize(
    ("check", "changes", "launch", "message"),
    [
        (
            shared_out,
            {"batch_size": 30},
            Launch(world=4, local_world=4),
            "--batch-size 30 .* 4 processes .* multiple of 4, .* 32",
        ),
        (shared_out, {"accumulate": 5}, Launch(), "--batch-size 32 .* multiple of 5, such as 35"),
        (check_device, {"sync_batchnorm": True}, Launch(), "--sync-batchnorm: .*GPUs only"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(monkeypatch, check, changes, launch, message):
    monkeypatch.setattr(context, "this_launch", lambda: launch)
    with pytest.raises(SbsError, match=message):
        check(dataclasses.replace(CONFIG, **changes))


def test_the_launch_is_torchruns(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some containers set it for other purposes
    assert this_launch() == Launch()
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert this_launch() == Launch(rank=5, world=8, local_rank=1, local_world=4) and this_launch().nodes == 2
