"""Layers that compute the same for every image, such as convolutions over positions.

An exporter folds such a layer into a constant, and its weights vanish from the graph.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from calib.calls import argument


def constant_layers(model: nn.Module, example: Tensor) -> set[str]:
    """Names of convolutions and linear layers whose input does not depend on the image; `model` does not change.

    Two images have to give equal inputs, and no gradient may lead from the input to the image: equal inputs alone can
    be dead activations, missing gradients alone can come from `detach` or checkpointing. Unclear layers are left out.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(example.shape, generator=generator).to(example) for _ in range(2)]
    try:
        with torch.no_grad():
            first, second = (_inputs(model, image) for image in images)
        same = {name for name, x in first.items() if name in second and torch.equal(x, second[name])}
        return same - _that_follow(model, images[0]) if same else set()
    except Exception:  # noqa: BLE001  # the network may raise anything for such images, or with gradients
        return set()


def _inputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    _watched(model, image, lambda name, x: found.setdefault(name, x.clone()))
    return found


def _that_follow(model: nn.Module, image: Tensor) -> set[str]:
    found: set[str] = set()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.enable_grad():
        # Not a leaf tensor, so that the network may change it in place.
        _watched(model, image.requires_grad_() * 1, lambda name, x: found.add(name) if x.requires_grad else None)
    return found


def _watched(model: nn.Module, image: Tensor, look: Callable[[str, Tensor], Any]) -> None:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)}

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args, kwargs: (look(name, argument(args, kwargs)), None)[1]

    hooks = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model(image)
    finally:
        for one in hooks:
            one.remove()
