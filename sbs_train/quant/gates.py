"""Gates with learned thresholds (the paper's): which bits a layer has, and which groups of filters remain.

    quantization gate   g = 1[ mean|z - D_k(z)| > alpha ]           one per level, layer and tensor
    pruning gate        g = 1[ importance of the filters > alpha ]  one threshold a channel group

(Liu et al., TPAMI 2023, sections 3.2 and 3.3.) The thresholds of the whole network live in three tensors, so one
step costs a few vector operations however many layers there are.

Shapes: L layers; S searched ones; J gates of a tensor's J + 1 levels; P prunable channel groups; B filters a gate.
"""

import itertools
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbs_train.contract.cost import Cost
from sbs_train.contract.plan import ChannelGroup
from sbs_train.quant.space import SearchSpace

THRESHOLD_MAX = 4.0
"""Largest threshold: metrics lie around 1, and far above the surrogate's slope vanishes and no gate reopens."""

PRUNING_SLOPE = 4.0
"""Slope of the pruning gates' surrogate: steeper, as importances lie in 0..1 and normalised errors around 1."""


class _HardGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.temperature = temperature
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (margin,) = ctx.saved_tensors
        s = torch.sigmoid(margin * ctx.temperature)
        return grads[0] * s * (1 - s) * ctx.temperature, None


def hard_gate(margin: Tensor, temperature: float = 1.0) -> Tensor:
    """1 where margin > 0, else 0; the backward pass uses the derivative of sigmoid(temperature * margin)."""
    result: Tensor = _HardGate.apply(margin, temperature)
    return result


def selected_bits(gates_SJ: Tensor, bits: tuple[int, ...]) -> Tensor:
    """`bits_L`: the bitwidth that nested gates select, differentiable in the gates."""
    steps_J = torch.tensor([b - a for a, b in itertools.pairwise(bits)], dtype=gates_SJ.dtype)
    return bits[0] + gates_SJ.cumprod(1) @ steps_J.to(gates_SJ.device)


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The gates of one step, in the autograd graph."""

    bits_w_L: Tensor
    bits_a_L: Tensor
    fraction_P: Tensor
    """Kept fraction of every prunable group."""
    cost: Tensor
    """Cost of the whole network, in the target's unit."""


def _on_device(value: Any, device: torch.device) -> Any:
    """A cost with its arrays as float32 tensors on `device`, so that it can be differentiated."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).float().to(device)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{name: _on_device(part, device) for name, part in vars(value).items()})


class GateBank(nn.Module):
    """All thresholds of a network, and the gates computed from them.

    `forward` computes the gates from the layers' metrics and sets them in the layers, so it must run before the
    network does.
    """

    fixed_bits_w: Tensor
    fixed_bits_a: Tensor
    group_in: Tensor
    group_out: Tensor
    row_S: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space, self.config, self.layers = space, space.config, space.layers
        self.searched, self.prunable = space.searched, space.prunable
        device = space.device
        shape_w, shape_a = ((len(space.searched), max(0, len(bits) - 1)) for bits in (space.bits_w, space.bits_a))
        start = self.config.threshold_start
        self.alpha_w = nn.Parameter(torch.full(shape_w, start, device=device))
        self.alpha_a = nn.Parameter(torch.full(shape_a, start, device=device))
        self.alpha_p = nn.Parameter(torch.zeros(len(space.prunable), device=device))
        # Constants of the cost as tensors: a few vector operations for any number of layers.
        for name in ("fixed_bits_w", "fixed_bits_a", "group_in", "group_out", "row_S"):
            value = torch.from_numpy(getattr(space, name)).to(device)
            self.register_buffer(name, value.float() if value.is_floating_point() else value, persistent=False)
        self._cost: Cost = _on_device(space.cost, device)

    def forward(self) -> Gates:
        """Compute the gates of this step, and set every layer's `gates_w`, `gates_a` and `mask_in`."""
        temperature = self.config.temperature
        gates_w = hard_gate(self.margins_w(), temperature)
        gates_a = hard_gate(self.margins_a(), temperature)
        for index, name in enumerate(self.searched):
            self.layers[name].gates_w = gates_w[index]
            self.layers[name].gates_a = gates_a[index]
        kept: list[Tensor] = []
        for index, group in enumerate(self.prunable):
            margin = self.importance(group) - self.alpha_p[index]
            gates_B = hard_gate(margin, PRUNING_SLOPE * temperature)
            mask_C = self.space.by_channel(group, gates_B)
            kept.append(mask_C.mean())
            for name in group.consumers:
                self.layers[name].mask_in = mask_C
        return self._gates(gates_w, gates_a, kept)

    def margins_w(self) -> Tensor:
        """`margin_SJ`: metric minus threshold of the weight gates."""
        return self._margins("metric_w", self.alpha_w)

    def margins_a(self) -> Tensor:
        """`margin_SJ`: metric minus threshold of the activation gates."""
        return self._margins("metric_a", self.alpha_a)

    def importance(self, group: ChannelGroup) -> Tensor:
        """`score_B` in 0..1 of every group of filters, from the producers' weights.

        "rank" spreads the scores evenly, so the threshold is the pruned fraction; "norm" is mean |w| / max |w|
        (the paper), whose gradient reaches the pruned filters as well.
        """
        blocks, size = self.space.blocks(group), self.space.block_size(group)
        total = torch.zeros(group.size, device=self.alpha_p.device)
        for name in group.producers:
            weight = self.layers[name].weight
            per_filter = weight.abs().flatten(1).mean(1)
            total = total + (per_filter / weight.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
        counts = torch.full((blocks,), float(size), device=total.device)
        counts[-1] = group.size - (blocks - 1) * size
        score_B = self.space.sum_by_block(group, total / len(group.producers)) / counts
        if self.config.pruning_metric == "norm":
            return score_B
        rank_B = score_B.detach().argsort().argsort().to(score_B.dtype)
        return (rank_B + 0.5) / blocks

    def cost(self, bits_w_L: Tensor, bits_a_L: Tensor, fraction_P: Tensor) -> Tensor:
        """Cost (0-d) of the network for bits of every layer and the kept fraction of every prunable group."""
        fraction = torch.cat([fraction_P, torch.ones(1, device=fraction_P.device)])
        fraction_in, fraction_out = fraction[self.group_in], fraction[self.group_out]
        total: Tensor = (
            self._cost.constant + self._cost.of(fraction_in, fraction_out, bits_w_L, bits_a_L, slice(None)).sum()
        )
        return total

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep thresholds where gates can move: at least 0, and no layer pruned beyond the allowed ratio."""
        self.alpha_w.clamp_(0, THRESHOLD_MAX)
        self.alpha_a.clamp_(0, THRESHOLD_MAX)
        for index, group in enumerate(self.prunable):
            score = self.importance(group).sort().values
            most = self.space.prunable_blocks(group)
            # Halfway between the last group that may go and the first that must stay.
            limit = (score[most - 1] + score[most]) / 2 if most else torch.zeros_like(score[0])
            self.alpha_p[index] = torch.minimum(self.alpha_p[index].clamp_min(0), limit)

    def _margins(self, metric: str, alpha: Tensor) -> Tensor:
        if not self.searched:
            return alpha
        return torch.stack([getattr(self.layers[name], metric) for name in self.searched]) - alpha

    def _gates(self, gates_w: Tensor, gates_a: Tensor, kept: list[Tensor]) -> Gates:
        bits_w, bits_a = self.fixed_bits_w.clone(), self.fixed_bits_a.clone()
        if self.searched:
            bits_w[self.row_S] = selected_bits(gates_w, self.space.bits_w)
            bits_a[self.row_S] = selected_bits(gates_a, self.space.bits_a)
        fraction_P = torch.stack(kept) if kept else torch.zeros(0, device=self.row_S.device)
        return Gates(
            bits_w_L=bits_w, bits_a_L=bits_a, fraction_P=fraction_P, cost=self.cost(bits_w, bits_a, fraction_P)
        )
