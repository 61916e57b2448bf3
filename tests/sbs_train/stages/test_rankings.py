"""Importance of blocks against sums written out over the weights that a block's removal takes away."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sbs_train.contract.config import TrainConfig
from sbs_train.stages.rankings import by_magnitude, by_taylor
from sbs_train.stages.ranks import ALONE
from sbs_train.tasks.classification import Classification
from sbs_train.tasks.feed import Feed
from tests.sbs_train.small import image_batches, small_network, space_of


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
def test_both_rankings_are_those_of_the_written_out_sums(model):
    network = small_network("prune", model=model, prune="coupled")
    space = space_of(network.layers, network.topology.groups, group_size=2)
    assert space.prunable
    batches = list(image_batches(network, 2))
    network.model.eval()
    data = SimpleNamespace(train_batches=lambda size, seed, steps, first: batches[:steps], num_classes=10)
    feed = Feed(task=Classification(data=data), accumulate=2)
    ctx = SimpleNamespace(config=TrainConfig(accumulate=2), feed=feed, ranks=ALONE)
    magnitude, taylor = by_magnitude(space), by_taylor(ctx, network.model, space, 2)
    products = {name: 0.0 for name in network.layers}
    for x_NCHW, y_N in batches:
        network.model.zero_grad()
        F.cross_entropy(network.model(x_NCHW), y_N).backward()
        for name, layer in network.layers.items():
            products[name] = products[name] + (layer.weight.grad * layer.weight).detach().abs().numpy() / 2
    squares = {name: layer.weight.detach().numpy() ** 2 for name, layer in network.layers.items()}

    def removed(values, group, block):
        """Sum over everything that goes with channels 2 * block and 2 * block + 1."""
        channels = [c for c in (2 * block, 2 * block + 1) if c < group.size]
        total = sum(values[name][channels].sum() for name in group.producers)
        for name in group.consumers:
            if name not in group.producers:
                total += values[name][:, channels].sum()
        return total

    for p, group in enumerate(space.prunable):
        blocks = range(space.blocks(group))
        np.testing.assert_allclose(taylor[p], [removed(products, group, b) for b in blocks], rtol=1e-4, atol=1e-9)
        norms = np.sqrt([removed(squares, group, b) for b in blocks])
        np.testing.assert_allclose(magnitude[p], norms / norms.mean(), rtol=1e-5)


def test_a_network_without_prunable_groups_has_nothing_to_rank():
    network = small_network("prune", max_pruning_ratio=0.0)
    space = space_of(network.layers, network.topology.groups, max_pruning_ratio=0.0)
    assert by_magnitude(space) == by_taylor(SimpleNamespace(), network.model, space, 1) == []
    assert torch.is_grad_enabled()
