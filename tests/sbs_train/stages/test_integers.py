"""Filters of one size compute what they computed before."""

import torch
from torch import nn

from sbs_train.stages.integers import equalise_filters
from tests.sbs_train.small import small_network


def test_filters_become_equal_and_the_network_stays_what_it_is():
    torch.manual_seed(0)
    network = small_network(mode="prune")  # no quantizers
    model = network.model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(10 ** torch.empty(len(module.weight), 1, 1, 1).uniform_(-2, 1))
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        x = torch.randn(4, *network.inputs[0].sample, dtype=torch.float64)
        before = model(x)
        equalise_filters(network)
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    convolutions = [layer for layer in network.layers.values() if layer.kind != "linear"]
    for layer in convolutions:
        largest = layer.weight.detach().abs().flatten(1).amax(1)
        assert largest.max() / largest.min() < 1.001
    assert len(convolutions) > 10
