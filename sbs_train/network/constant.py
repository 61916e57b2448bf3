"""Layers that compute the same for every sample, such as convolutions over positions.

An exporter folds such a layer into a constant, and its weights vanish from the graph.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from calib.calls import argument
from sbs_train.example import Example


def constant_layers(model: nn.Module, example: Example) -> set[str]:
    """Names of convolutions and linear layers with a call whose input does not depend on the network's.

    Two examples have to give equal inputs, and no gradient may lead from the input to the example: equal inputs alone
    can be dead activations, missing gradients alone can come from `detach` or checkpointing. Unclear layers are left
    out. `model` does not change.
    """
    model = copy.deepcopy(model)
    examples = [example.random(0), example.random(1).map(_reversed)]
    try:
        with torch.no_grad():
            first, second = (_inputs(model, one) for one in examples)
        same = {call for call, x in first.items() if call in second and torch.equal(x, second[call])}
        return {name for name, _ in same - _that_follow(model, examples[0])} if same else set()
    except Exception:  # noqa: BLE001  # the network may raise anything for such examples, or with gradients
        return set()


def _reversed(tensor: Tensor) -> Tensor:
    """Other integers than before, but none that are new: they may be indices."""
    return tensor if tensor.is_floating_point() else tensor.flip(tuple(range(tensor.dim())))


Call = tuple[str, int]
"""A layer, and the number of its earlier calls in the pass."""


def _inputs(model: nn.Module, example: Example) -> dict[Call, Tensor]:
    found: dict[Call, Tensor] = {}
    _watched(model, example, lambda call, x: found.update({call: x.clone()}))
    return found


def _that_follow(model: nn.Module, example: Example) -> set[Call]:
    found: set[Call] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            # Integers have no gradients, but what an embedding looks up by them has.
            parameter.requires_grad_(isinstance(module, nn.Embedding | nn.EmbeddingBag))
    with torch.enable_grad():
        # Not leaf tensors, so that the network may change them in place.
        followed = example.map(lambda tensor: tensor.requires_grad_() * 1 if tensor.is_floating_point() else tensor)
        _watched(model, followed, lambda call, x: found.add(call) if x.requires_grad else None)
    return found


def _watched(model: nn.Module, example: Example, look: Callable[[Call, Tensor], Any]) -> None:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)}

    calls = Counter[str]()

    def hook(name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            look((name, calls[name]), argument(args, kwargs))
            calls[name] += 1

        return see

    hooks = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        example.run(model)
    finally:
        for one in hooks:
            one.remove()
