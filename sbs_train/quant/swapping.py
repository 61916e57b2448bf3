"""Swap the layers of a model for layers that share bits, in place."""

from functools import cache
from typing import Any, cast

import torch
from torch import nn

from sbs_train.quant.kinds import (
    FollowingConv2d,
    FollowingLinear,
    SBSConv2d,
    SBSConvTranspose2d,
    SBSFollower,
    SBSLinear,
    own_forward,
)
from sbs_train.quant.layers import KINDS, SBSLayer, sbs_layers


def swap_layers(model: nn.Module, names: set[str] | None = None) -> dict[str, SBSLayer]:
    """Turn the named convolutions and linear layers of `model` into SBS layers; returns them by name.

    Without names, all whose forward is torch's. A layer stays the same object, so every name, list and hook of the
    model still leads to it. A module that has the weights of a swapped layer follows that layer.
    """
    layers: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if name and isinstance(m, KINDS)}
    leaders: dict[int, SBSLayer] = {}
    for name, layer in layers.items():
        wanted = has_parents_forward(layer) if names is None else name in names
        if wanted and id(layer.weight) not in leaders:
            leaders[id(layer.weight)] = _swap(layer)  # its weight stays the same object
    for layer in layers.values():
        leader = leaders.get(id(layer._parameters.get("weight")))
        if leader is not None and not isinstance(layer, SBSLayer):
            layer.__class__ = _swapped(cast(Any, type(layer)), (FollowingConv2d, FollowingLinear))
            assert isinstance(layer, SBSFollower)
            layer.leader = (leader,)
    return dict(sbs_layers(model))


def has_parents_forward(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer, or a subclass of them, computes as torch's class does."""
    kind = type(layer)
    if issubclass(kind, nn.Conv2d) and kind._conv_forward is not nn.Conv2d._conv_forward:
        return False
    return kind.forward in [parent.forward for parent in KINDS]


@cache
def _swapped(kind: Any, bases: tuple[type[nn.Module], ...]) -> Any:
    """The class of a swapped layer, of one of `bases`; for a subclass, one that keeps the subclass's other methods."""
    base: Any = next(base for base in bases if issubclass(kind, base.plain))  # type: ignore[attr-defined]
    if kind is base.plain:
        return base
    # Found again by its parents, since no module has a class of this name: for copies and for files.
    body: dict[str, object] = {
        "plain": kind,
        "__reduce_ex__": lambda self, protocol: (_blank, (kind, bases), self.__dict__.copy()),
    }
    if kind.forward is not base.plain.forward:
        body["forward"] = own_forward
    return type(kind.__name__, (base, kind), body)


def _blank(kind: Any, bases: tuple[type[nn.Module], ...]) -> nn.Module:
    made = _swapped(kind, bases)
    layer: nn.Module = made.__new__(made)
    return layer


def _swap(layer: nn.Module) -> SBSLayer:
    device, kind = layer.weight.device, cast(Any, type(layer))
    assert isinstance(device, torch.device)
    layer.__class__ = _swapped(kind, (SBSConv2d, SBSConvTranspose2d, SBSLinear))
    assert isinstance(layer, SBSLayer)
    layer._init_sharing()
    layer.to(device)
    return layer
