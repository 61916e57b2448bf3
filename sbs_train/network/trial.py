"""A trial of pruning: whether a network without some channels computes the outputs of the network with masked channels.

The dependency graph knows common operations; a network may have others (a normalisation across channels, a reshape
that mixes channels). So channels are removed from a copy before training.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from sbs_train.contract.plan import ChannelGroup
from sbs_train.example import Example, floats_of
from sbs_train.network.dependencies import remove_channels

TOLERANCE = 1e-4
"""Largest error, as a part of the largest output: a wrong channel causes far more than rounding in float32."""
PASSES = 2
"""Random examples that give BatchNorm its statistics: one of two samples may have two that are close."""

Part = TypeVar("Part")


def unsafe_groups(model: nn.Module, groups: list[ChannelGroup], example: Example) -> set[str]:
    """Ids of `groups` from which channels cannot be removed exactly; `model` does not change."""
    if not groups:
        return set()
    tried, x = shaken(model, example), example.random(1)
    return {group.id for group in failing(groups, lambda some: _removes_exactly(tried, some, x))}


def failing(parts: Sequence[Part], works: Callable[[Sequence[Part]], bool]) -> list[Part]:
    """The `parts` that fail `works`: tries all at once, which mostly works, else splits in halves."""
    if not parts or works(parts):
        return []
    if len(parts) == 1:
        return list(parts)
    middle = len(parts) // 2
    return failing(parts[:middle], works) + failing(parts[middle:], works)


def equal(found: Sequence[Tensor] | None, expected: Sequence[Tensor], tolerance: float) -> bool:
    """Whether in every tensor the largest error is at most `tolerance` of the largest value; a NaN is an error."""
    if found is None or [y.shape for y in found] != [y.shape for y in expected]:
        return False
    return all(_equal(one, other, tolerance) for one, other in zip(found, expected, strict=True) if other.numel())


def _equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    # What is equal may be infinite, as masked values are.
    error = torch.where(found == expected, 0.0, (found - expected).abs()).max()
    largest = torch.where(expected.isinf(), 0.0, expected.abs()).max().clamp_min(1e-30)
    return bool(error / largest <= tolerance)


def _removes_exactly(model: nn.Module, groups: Sequence[ChannelGroup], x: Example) -> bool:
    slim = copy.deepcopy(model)
    try:
        remove_channels(slim, x, {group.producers[0]: _removed(group) for group in groups})
        with torch.no_grad():
            found = floats_of(x.run(slim))
            del slim
            with _masked(model, groups):
                expected = floats_of(x.run(model))
    except Exception:  # noqa: BLE001  any exception shows that these groups are not safe
        return False
    return equal(found, expected, TOLERANCE)


def _removed(group: ChannelGroup) -> list[int]:
    """About half of the channels, unevenly spaced; with the first, which a broadcast map of one channel shares."""
    return [channel for channel in range(group.size) if channel % 4 in (0, 3)][: group.size - 1]


@contextmanager
def _masked(model: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[None]:
    """Mask channels as the search does: zero their weights in all readers except depthwise layers."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    for group in groups:
        for name in group.consumers:
            layer = model.get_submodule(name)
            if getattr(layer, "groups", 1) == 1:
                weight = layer.get_parameter("weight")
                before.append((weight, weight.clone()))
                weight[:, _removed(group)] = 0
    try:
        yield
    finally:
        for weight, values in before:
            weight.copy_(values)


@torch.no_grad()
def shaken(model: nn.Module, example: Example) -> nn.Module:
    """A copy in eval mode with random values in place of initial zeros and ones, so that every channel matters."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() <= 1 or not bool(parameter.any()):
            parameter.data.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all passes
        norm.train()
    # Normalisation must fit the values, or they leave the range after many layers.
    for seed in range(PASSES):
        example.random(seed).run(model)
    return model.eval()
