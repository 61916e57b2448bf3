"""Importance of every block of filters, as pruning without a search ranks them.

    magnitude   the L2 norm of a block's weights, over the mean norm of its group (Li et al., 2017)
    Taylor      first order: the sum of |g * w| over a block's weights w with gradients g (Molchanov et al., 2019)

A block's weights are those that its removal takes away: filters of the layers that write the group, and inputs of the
layers that read it. Shapes: C channels and B blocks of a group.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sbs_train.contract.plan import ChannelGroup
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.context import Context
from sbs_train.stages.loop import epoch_seed

Ranking = list[list[float]]
"""Importance of every block, by prunable group."""


@torch.no_grad()
def by_magnitude(space: SearchSpace) -> Ranking:
    """The L2 norm of every block, over the mean of its group."""
    norms = _by_block(space, lambda name: space.layers[name].weight.square())
    return [(norm_B.sqrt() / norm_B.sqrt().mean().clamp_min(1e-30)).tolist() for norm_B in norms]


def by_taylor(ctx: Context, model: nn.Module, space: SearchSpace, batches: int) -> Ranking:
    """|g * w| of every block, as a mean over training batches; the network is at its finest bits and not pruned."""
    members = dict.fromkeys(name for group in space.prunable for name in (*group.producers, *group.consumers))
    weights = {name: space.layers[name].weight for name in members}
    products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    if not weights:
        return []
    seed = epoch_seed(ctx.config.seed, "taylor", 0)
    for parts in ctx.feed.steps(seed, batches):
        gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        counts = [ctx.feed.samples(part) for part in parts]
        for part, count in zip(parts, counts, strict=True):
            loss = ctx.feed.task.loss(model, part) * (count / sum(counts))
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                gradients[name] += gradient
        ctx.ranks.average_(list(gradients.values()))
        for name, gradient in gradients.items():
            products[name] += (gradient * weights[name].detach()).abs() / batches
    return [product_B.tolist() for product_B in _by_block(space, products.__getitem__)]


def _by_block(space: SearchSpace, values_of: Callable[[str], Tensor]) -> list[Tensor]:
    """`sum_B` by prunable group: values of weights, shaped like a layer's weights, added up over every block."""

    def by_channel(group: ChannelGroup) -> Tensor:
        parts = [values_of(name).flatten(1).sum(1) for name in group.producers]
        # A depthwise layer's filters are counted above: it writes the channels that it reads.
        readers = [name for name in group.consumers if name not in group.producers]
        return torch.stack(parts + [values_of(name).transpose(0, 1).flatten(1).sum(1) for name in readers]).sum(0)

    return [space.sum_by_block(group, by_channel(group)).double().cpu() for group in space.prunable]
