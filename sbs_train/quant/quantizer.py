"""Bit sharing: one tensor encodes every candidate bitwidth (Liu et al., TPAMI 2023, section 3.1).

With z = x / clip and D_k(z) the nearest level of the k-th grid (coarse to fine), the paper's nested form is

    z^ = D_0 + g_1 (r_1 + g_2 (r_2 + ...))        r_k = D_k - D_{k-1}

Gates are hard, so the forward value is one plain quantization at the finest open level. Only the gates' gradients
need the offsets r_k, and those are recomputed in the backward pass from the one saved tensor x:

    dx    = G 1[z in range]
    dclip = sum G (D - z 1[z in range])                     (learned clip: PACT, arXiv 1805.06085; LSQ, 1902.08153)
    dg_j  = clip (prod_{i<j} g_i) sum_{k>=j} (prod_{j<i<=k} g_i) (S_k - S_{k-1})        S_k = sum G D_k

Shapes: x any; clip scalar; gates_J the J = K - 1 gates of K levels; table_K4 one `Level.affine()` row a level.
"""

from typing import Any

import torch
from torch import Tensor

from sbs_train.contract.grid import Grid


def level_table(grid: Grid) -> Tensor:
    """`table_K4`: the affine form of every level, coarse to fine."""
    return torch.tensor([level.affine() for level in grid.levels], dtype=torch.float32)


def error_units(grid: Grid) -> Tensor:
    """`unit_J`: mean rounding error of evenly spread values at every level but the finest, to normalise metrics."""
    return torch.tensor([level.mean_error() for level in grid.levels[:-1]], dtype=torch.float32)


def open_levels(gates_J: Tensor) -> Tensor:
    """Index of the selected level: how many gates are open before the first closed one (0-d, int64)."""
    return gates_J.detach().cumprod(0).sum().long()


def round_to_level(x: Tensor, clip: Tensor, row_4: Tensor) -> Tensor:
    """Quantized x: the nearest level of one grid, times clip."""
    a, c, lo, hi = row_4.unbind()
    scale = a / clip
    return (torch.round(torch.clamp(x * scale - c, lo, hi)) + c) / scale


def codes_of(x: Tensor, clip: Tensor, row_4: Tensor, *, odd: bool) -> Tensor:
    """Integer codes (int8) of x; `codes * clip / steps` is `round_to_level` of the same arguments."""
    a, c, lo, hi = row_4.unbind()
    rounded = torch.round(torch.clamp(x * (a / clip) - c, lo, hi)) + c
    return (rounded * (2 if odd else 1)).round().to(torch.int8)


def rounding_errors(x: Tensor, clip: Tensor, table_K4: Tensor) -> Tensor:
    """`error_J`: mean |z - D_k(z)| over the tensor for every level but the finest, z clipped to the finest range."""
    a, c, lo, hi = table_K4[-1].unbind()
    z = torch.clamp(x / clip, (lo + c) / a, (hi + c) / a)
    one = torch.ones_like(clip)
    return torch.stack([(z - round_to_level(z, one, row)).abs().mean() for row in table_K4[:-1]])


class _BitSharing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, gates_J: Tensor, table_K4: Tensor) -> Tensor:
        selected = open_levels(gates_J)
        ctx.save_for_backward(x, clip, gates_J, table_K4, selected)
        return round_to_level(x, clip, table_K4[selected])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, clip, gates_J, table_K4, selected = ctx.saved_tensors
        kernel = gradients_with_gates if ctx.needs_input_grad[2] else gradients
        dx, dclip, dgates_J = kernel(grads[0], x, clip, gates_J, table_K4, selected)
        return dx, dclip, dgates_J, None


def gradients(
    grad: Tensor, x: Tensor, clip: Tensor, gates_J: Tensor, table_K4: Tensor, selected: Tensor
) -> tuple[Tensor, Tensor, None]:
    """(dx, dclip, None): the backward pass of a quantizer whose gates are frozen, as in plain QAT."""
    a, c, lo, hi = table_K4[selected].unbind()
    t = x * (a / clip) - c
    inside = torch.clamp(t, lo, hi)
    # D - z 1[in range]: the rounding error inside, the end level outside.
    dclip = (grad * (torch.round(inside) - torch.where(inside == t, t, -c))).sum() / a
    return grad * (inside == t), dclip, None


def gradients_with_gates(
    grad: Tensor, x: Tensor, clip: Tensor, gates_J: Tensor, table_K4: Tensor, selected: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dclip, dgates_J): the offsets of every level are recomputed from x."""
    dx, dclip, _ = gradients(grad, x, clip, gates_J, table_K4, selected)
    one = torch.ones_like(clip)
    z = x / clip
    sums_K = torch.stack([(grad * round_to_level(z, one, row)).sum() for row in table_K4])
    offsets_J = sums_K[1:] - sums_K[:-1]
    dgates = []
    for j in range(len(gates_J)):
        before = gates_J[:j].prod()
        behind = torch.cat([torch.ones_like(gates_J[:1]), gates_J[j + 1 :]]).cumprod(0)
        dgates.append(clip * before * (behind * offsets_J[j:]).sum())
    return dx, dclip, torch.stack(dgates)


def quantize(x: Tensor, clip: Tensor, gates_J: Tensor, table_K4: Tensor) -> Tensor:
    """x at the finest open level, differentiable in x, clip and the gates."""
    result: Tensor = _BitSharing.apply(x, clip, gates_J, table_K4)  # type: ignore[no-untyped-call]
    return result


def quantize_decomposed(x: Tensor, clip: Tensor, gates_J: Tensor, table_K4: Tensor) -> Tensor:
    """The nested form, literally, differentiated by autograd: the reference `quantize` is checked against.

    It keeps several tensors a level for the backward pass, which is what the custom backward avoids.
    """
    a, c, lo, hi = table_K4[open_levels(gates_J)].unbind()
    z = torch.clamp(x / clip, (lo + c) / a, (hi + c) / a)
    levels = [z + (round_to_level(z.detach(), torch.ones_like(clip), row) - z).detach() for row in table_K4]
    nested = torch.zeros_like(z)
    for k in range(len(levels) - 1, 0, -1):
        nested = gates_J[k - 1] * ((levels[k] - levels[k - 1]) + nested)
    return (levels[0] + nested) * clip
