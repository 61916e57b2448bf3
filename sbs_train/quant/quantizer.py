"""Bit sharing: one tensor encodes every candidate bitwidth (Liu et al., TPAMI 2023, section 3.1).

With z = x / clip and D_k(z) the nearest level of the k-th grid (coarse to fine), the paper's nested form is

    z^ = D_0 + g_1 (r_1 + g_2 (r_2 + ...))        r_k = D_k - D_{k-1}

Gates are hard, so the forward value is one plain quantization at the finest open level. Only the gates' gradients
need the offsets r_k, and those are recomputed in the backward pass from the one saved tensor x:

    dx    = G 1[z in range]
    dclip = sum G (D - z 1[z in range])                     (learned clip: PACT, arXiv 1805.06085; LSQ, 1902.08153)
    dg_j  = (prod_{i<j} g_i) sum_{k>=j} (prod_{j<i<=k} g_i) (S_k - S_{k-1})        S_k = sum G clip_k D_k

Every level may have a clip value of its own: two bits need a tighter one. A probe is a tensor of zeros, whose
gradient S_k - S_{K-1} is the change of the loss towards each level, for any gates. A probe with a column for every
level asks for the changes against the unrounded tensor: S_k - sum G x. A probe has one row for the whole tensor, or one
for each of the first M samples of a batch.

A backward pass marks the `Pass` it belongs to: only what had a backward pass counts for a probe.

Everything is computed in float32 at least: a tensor in a shorter type, as under autocast, would miss its level.

Shapes: x any; clip_K, table_K4 (`Level.affine()`) one row a level; gates_J the J = K - 1 gates of K levels;
probe_MJ, or probe_J for the whole tensor; probe_MK and probe_K against the unrounded tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    a, c, lo, hi = _bounds(row_4)
    scale = a / clip
    rounded: Tensor = (x * scale).sub_(c).clamp_(lo, hi).round_().add_(c)
    return rounded.div_(scale)


def codes_of(x: Tensor, clip: Tensor, row_4: Tensor, *, odd: bool) -> Tensor:
    """Integer codes (int8) of x; `codes * clip / steps` is `round_to_level` of the same arguments."""
    a, c, lo, hi = _bounds(row_4)
    rounded: Tensor = (x * (a / clip)).sub_(c).clamp_(lo, hi).round_().add_(c)
    return rounded.mul_(2 if odd else 1).round_().to(torch.int8)


def rounding_errors(x: Tensor, clip_K: Tensor, table_K4: Tensor) -> Tensor:
    """`error_J`: mean |z - D_k(z)| over the tensor for every level but the finest, z clipped to the finest range."""
    a, c, lo, hi = _bounds(table_K4[-1])
    z = torch.clamp(_precise(x) / clip_K[-1], (lo + c) / a, (hi + c) / a)
    ratio_K = clip_K / clip_K[-1]
    rows = zip(ratio_K[:-1], table_K4[:-1], strict=True)
    return torch.stack([round_to_level(z, ratio, row).sub_(z).abs_().mean() for ratio, row in rows])


def gradients(grad: Tensor, x: Tensor, quantized: Tensor, clip: Tensor, row_4: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dclip): the backward pass at one level, as in plain quantization-aware training."""
    a, c, lo, hi = _bounds(row_4)
    scale = _bounds(clip / a)
    inside = torch.clamp(x, (lo + c) * scale, (hi + c) * scale)
    dx = inside.eq_(x).mul_(grad)  # a float mask: multiplying by a boolean one costs ten times as much on the CPU
    # sum G (D - z 1[in range]) with clip * D = quantized and clip * z = x
    return dx, (_inner(grad, quantized) - _inner(dx, x)) / clip


def level_sums(grad: Tensor, x: Tensor, clip_K: Tensor, table_K4: Tensor) -> Tensor:
    """`S_K`: the inner product of the incoming gradient with x quantized at every level."""
    total = grad.sum()
    sums = []
    for clip, row in zip(clip_K, table_K4, strict=True):
        a, c, lo, hi = _bounds(row)
        rounded = (x * (a / clip)).sub_(c).clamp_(lo, hi).round_()
        sums.append((_inner(grad, rounded) + c * total) * (clip / a))
    return torch.stack(sums)


def row_sums(grad: Tensor, x: Tensor, clip_K: Tensor, table_K4: Tensor) -> Tensor:
    """`S_MK`: `level_sums` for every index of the first axis."""
    grad_MN, x_MN = _rows(grad, x)
    levels = zip(clip_K, table_K4, strict=True)
    return torch.stack([torch.linalg.vecdot(grad_MN, round_to_level(x_MN, clip, row)) for clip, row in levels], 1)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The three passes over a tensor that dominate a step."""

    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    level_sums: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


EAGER = Kernels(forward=round_to_level, backward=gradients, level_sums=level_sums)


@lru_cache(maxsize=1)
def compiled_kernels() -> Kernels:
    """`Kernels` whose passes torch.compile fuses; shapes stay symbolic, so layers share the code."""
    return Kernels(
        forward=torch.compile(round_to_level, dynamic=True),
        backward=torch.compile(gradients, dynamic=True),
        level_sums=torch.compile(level_sums, dynamic=True),
    )


@dataclass(kw_only=True, eq=False)
class Pass:
    """One forward pass through a network; several may come before one step of the optimizer."""

    start: int = 0
    """Samples of earlier passes of the step: the row of the probes that this pass begins at."""
    samples: int = 0
    """Samples of this pass; known once a layer ran whose axis 0 is the sample."""
    done: "list[Pass]" = field(default_factory=list, repr=False)
    """Passes of the step that a gradient came back to."""

    def came_back(self) -> None:
        """A gradient came back."""
        if self not in self.done:
            self.done.append(self)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Arguments of one quantizer besides its tensor, for a forward and a backward pass."""

    clip_K: Tensor
    gates_J: Tensor
    table_K4: Tensor
    probe_MJ: Tensor | None = None
    kernels: Kernels = EAGER
    within: Pass | None = None

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(clip, gates, probe), the tensors that get gradients; arguments of an autograd.Function."""
        return self.clip_K, self.gates_J, self.probe_MJ

    def quantize(self, x: Tensor) -> Tensor:
        """x at the finest open level, without gradients."""
        _, clip, row_4 = self._selected
        return self.kernels.forward(_precise(x.detach()), clip, row_4)

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """dx and the gradients of `inputs`; None for those of `inputs` that are not `needed`."""
        if self.within is not None:
            self.within.came_back()
        grad, x = _precise(grad), _precise(x.detach())
        level, clip, row_4 = self._selected
        dx, dclip = self.kernels.backward(grad, x, quantized, clip, row_4)
        dclip_K = torch.zeros_like(self.clip_K).index_copy_(0, level, dclip.view(1))
        dgates_J = dprobe_MJ = None
        if needed[1]:
            sums_K = self.kernels.level_sums(grad, x, self.clip_K, self.table_K4)
            dgates_J = gate_gradients(self.gates_J, sums_K)
        if needed[2] and self.probe_MJ is not None:
            sums = self._probed_sums(grad, x, self.probe_MJ)
            dprobe_MJ = sums[..., :-1] - sums[..., -1:]
        return dx, dclip_K, dgates_J, dprobe_MJ

    @cached_property
    def _selected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The open level's index (one element), clip value and row."""
        level = open_levels(self.gates_J).view(1)
        return level, self.clip_K.detach().index_select(0, level)[0], self.table_K4.index_select(0, level)[0]

    def _probed_sums(self, grad: Tensor, x: Tensor, probe: Tensor) -> Tensor:
        """`S_K` of the tensor, or `S_MK` of its first M samples, as the probe's shape asks.

        One more column holds sum G x, the sum of the unrounded tensor, if the probe has a column for every level.
        """
        unrounded = probe.shape[-1] == len(self.clip_K)
        if probe.dim() == 1:
            sums_K = self.kernels.level_sums(grad, x, self.clip_K, self.table_K4)
            return torch.cat([sums_K, _inner(grad, x).view(1)]) if unrounded else sums_K
        rows = len(probe)
        grad, x = grad[:rows], x[:rows]
        sums_MK = row_sums(grad, x, self.clip_K, self.table_K4)
        if unrounded:
            sums_MK = torch.cat([sums_MK, torch.linalg.vecdot(*_rows(grad, x))[:, None]], 1)
        return torch.nn.functional.pad(sums_MK, (0, 0, 0, rows - len(sums_MK)))


class _BitSharing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing, *inputs: Tensor | None) -> Tensor:
        ctx.sharing = sharing
        ctx.save_for_backward(x)
        return sharing.quantize(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        sharing: Sharing = ctx.sharing
        dx, *others = sharing.gradients(grads[0], x, sharing.quantize(x), ctx.needs_input_grad[2:])
        return dx, None, *others


def gate_gradients(gates_J: Tensor, sums_K: Tensor) -> Tensor:
    """`dg_J`: a gate's offset and the open offsets behind it, if every gate before it is open."""
    offsets_J = sums_K[1:] - sums_K[:-1]
    dgates = []
    for j in range(len(gates_J)):
        behind = torch.cat([torch.ones_like(gates_J[:1]), gates_J[j + 1 :]]).cumprod(0)
        dgates.append(gates_J[:j].prod() * (behind * offsets_J[j:]).sum())
    return torch.stack(dgates) if dgates else sums_K.new_zeros(0)


def quantize(x: Tensor, sharing: Sharing) -> Tensor:
    """x at the finest open level, differentiable in x, the clip values, the gates and the probe."""
    result: Tensor = _BitSharing.apply(x, sharing, *sharing.inputs())
    return result


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _bounds(values: Tensor) -> Any:
    # As bounds of a clamp, numbers are ten times faster than 0-d tensors on the CPU; on a GPU they would stall.
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return values.tolist()
    return values.unbind() if values.dim() else values


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """sum(a * b) without the product in memory where both share one dense layout."""
    if a.device.type == "cpu" and not torch.compiler.is_compiling() and _share_layout(a, b):
        flat = (a.numel(),), (1,)
        return torch.dot(a.as_strided(*flat), b.as_strided(*flat))
    return (a * b).sum()


def _rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors as matrices with a row per index of the first axis, their elements in one common order."""
    if not _share_layout(a, b):
        return a.flatten(1), b.flatten(1)
    size = len(a), a[0].numel()
    # Flattening would copy a channels-last tensor.
    return a.as_strided(size, (size[1], 1)), b.as_strided(size, (size[1], 1))


def _share_layout(a: Tensor, b: Tensor) -> bool:
    layouts = [torch.contiguous_format, torch.channels_last] if a.dim() == 4 else [torch.contiguous_format]
    return any(a.is_contiguous(memory_format=f) and b.is_contiguous(memory_format=f) for f in layouts)
