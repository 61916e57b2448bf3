"""Subclasses of Conv2d and Linear that compute what their parent does, perhaps with a padding of zeros in front.

timm's convolutions of "same" padding are such. Zeros are exact in every quantizer, so it does not matter whether the
input is quantized before or behind the padding.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sbs_train.quant.swapping import has_parents_forward

_PRODUCTS = (F.conv2d, F.linear)


def computes_its_parent(layer: nn.Module, x: Tensor) -> bool:
    """Whether a subclass multiplies its input `x`, padded with zeros or not, by its own weights, and does nothing else.

    Runs `forward` on `x`, without gradients and without hooks.
    """
    if has_parents_forward(layer):
        return True
    layer = copy.deepcopy(layer)  # its code may change it
    seen, version = _Seen(layer, x), x._version
    try:
        with torch.no_grad(), seen:
            y = layer.forward(x)
    except Exception:  # noqa: BLE001  a user's code may raise anything
        return False
    return seen.product is not None and y is seen.product and x._version == version


class _Seen(TorchFunctionMode):
    """Follows the input of a layer through paddings to the one product with the layer's weights."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.layer, self.padded = layer, [x]
        self.product: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        follows = any(given.get("input") is x for x in self.padded)
        if follows and func is F.pad and not (args[3:4] or [kwargs.get("value")])[0]:
            if (args[2:3] or [kwargs.get("mode", "constant")])[0] == "constant":
                self.padded.append(result)
        elif follows and func in _PRODUCTS:
            own = self.layer._parameters
            plain = given.get("weight") is own["weight"] and given.get("bias") is own["bias"]
            self.product = result if plain and self.product is None else None
        return result
