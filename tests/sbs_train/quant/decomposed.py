"""Bit sharing by its tensors, and its nested form, literally: the reference that it is checked against."""

import torch
from torch import Tensor

from sbs_train.quant import quantizer
from sbs_train.quant.quantizer import EAGER, Kernels, Sharing, open_levels, round_to_level


def quantize(
    x: Tensor,
    clip_K: Tensor,
    gates_J: Tensor,
    table_K4: Tensor,
    kernels: Kernels = EAGER,
    probe_MJ: Tensor | None = None,
) -> Tensor:
    """x at the finest open level, differentiable in x, the clip values, the gates and the probe."""
    sharing = Sharing(clip_K=clip_K, gates_J=gates_J, table_K4=table_K4, probe_MJ=probe_MJ, kernels=kernels)
    return quantizer.quantize(x, sharing)


def quantize_decomposed(x: Tensor, clip_K: Tensor, gates_J: Tensor, table_K4: Tensor) -> Tensor:
    """The nested form, literally, differentiated by autograd: the reference `quantize` is checked against.

    It keeps several tensors a level for the backward pass, which is what the custom backward avoids.
    """
    level = open_levels(gates_J)
    clip = clip_K[level]
    a, c, lo, hi = table_K4[level].unbind()
    z = torch.clamp(x / clip, (lo + c) / a, (hi + c) / a)
    # Every level saturates at its own end: the finest of the int8 grid reaches a little beyond the clip value.
    levels = [
        z + (round_to_level(x.detach(), own.detach(), row) / clip.detach() - z).detach()
        for own, row in zip(clip_K, table_K4, strict=True)
    ]
    nested = torch.zeros_like(z)
    for k in range(len(levels) - 1, 0, -1):
        nested = gates_J[k - 1] * ((levels[k] - levels[k - 1]) + nested)
    return (levels[0] + nested) * clip
