"""Estimated loss of every choice: the curvature of the loss along each quantization offset and each block of filters.

A probe (`quantizer.py`) gives d = dL/dp for a step p from the finest level, or from float where float is a candidate,
towards level k; a mask gives d for a block of filters. Near a minimum the mean of d over samples vanishes and its
variance is the Fisher information of p, which approximates the second derivative (Theis et al., arXiv 1801.05787):

    loss of choosing level k  =  1/2 Var_samples(d_k)            up to what training recovers, see `Losses`

The variance over samples is read off single samples for activations, and off whole batches of N for weights and masks,
where it is N times the variance between steps. Both come out of the backward pass that training needs anyway. Where
axis 0 of a layer's input is not the sample (`SBSLayer.per_sample`), its activations go by whole batches too.

The loss is taken for a mean over independent samples, up to a constant factor: the factor scales all estimates alike,
which changes no decision. The order of the samples does not matter.

Each of `world` processes (ranks) that train together sees a part of every batch; sums over the ranks give all of them
the moments of a single process.

Shapes: S searched layers; P prunable groups; K levels, coarse to fine; B blocks of a group; M probed samples; R layers
with a row a sample; W slopes of whole batches.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sbs_train.quant.layers import Passes
from sbs_train.quant.quantizer import Pass
from sbs_train.quant.space import SearchSpace

Floats = npt.NDArray[np.float64]

SAMPLES = 16
"""Probed samples of a step: an eighth of the usual batch costs little and still gives 16 samples a step."""
MOMENTUM = 0.98
"""Momentum of the running moments: they forget within about 50 steps, as the network changes."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Estimated increase of the loss over the most expensive plan, by choice; increases add up."""

    weights_SK: Floats
    inputs_SK: Floats
    blocks: list[Floats]
    """`loss_B` of removing each block, for every prunable group."""


class Sensitivity:
    """Gathers the moments of d while a network trains."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        rank: int = 0,
        world: int = 1,
        add: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """`add` sums a tensor over the `world` ranks, of which this is `rank`."""
        self.space, self._world, self._add = space, world, add
        self.passes = Passes()
        layers = [space.layers[name] for name in space.searched]
        self._by_row = np.array([layer.per_sample for layer in layers], bool)
        self.rows = len(range(rank, SAMPLES, world))
        """Samples that this rank probes in a step."""
        j_w, j_a = max(0, len(space.bits_w) - 1), max(0, len(space.bits_a) - 1)
        self._probes_w = [torch.zeros(j_w) for _ in layers]
        self._probes_a = [torch.zeros((self.rows, j_a) if by_row else j_a) for by_row in self._by_row.tolist()]
        self._masks = [torch.ones(group.size) for group in space.prunable]
        size = len(layers) * (j_w + j_a) + sum(space.blocks(group) for group in space.prunable)
        self._mean, self._square, self._count = torch.zeros(size), torch.zeros(size), torch.zeros(())
        self.unreached = {*space.searched, *(group.consumers[0] for group in space.prunable)}
        """Layers that no gradient has reached yet, though the space has a choice for them."""
        self._started: list[weakref.ref[Pass]] = []
        self._done: list[Pass] = []
        self.to(space.device)

    @property
    def count(self) -> int:
        """Observed steps, without those whose gradients were not finite."""
        return int(self._count)

    def to(self, device: torch.device) -> None:
        """Move the moments, and make the probes and the masks anew on the device; `attach` puts them in the layers."""
        moments = self._mean, self._square, self._count
        self._mean, self._square, self._count = (moment.to(device) for moment in moments)
        self._probes_w, self._probes_a, self._masks = (
            [leaf.detach().to(device).requires_grad_() for leaf in leaves]
            for leaves in (self._probes_w, self._probes_a, self._masks)
        )
        self._leaves = [*self._probes_w, *self._probes_a, *self._masks]

    def attach(self) -> None:
        """Set the probes and the masks in the layers; needed again after a plan was applied."""
        for layer in self.space.layers.values():
            layer.passes = self.passes
        for name, probe_w, probe_a in zip(self.space.searched, self._probes_w, self._probes_a, strict=True):
            layer = self.space.layers[name]
            layer.probe_w, layer.probe_a = probe_w, probe_a if len(probe_a) else None
        for group, mask in zip(self.space.prunable, self._masks, strict=True):
            for name in group.consumers:
                self.space.layers[name].mask_in = mask

    def start_pass(self, start: int | None = None) -> Pass:
        """Begin a forward pass, whose samples take the next rows of the probes.

        Args:
            start: samples of the step before; those of passes that a gradient came back to, or still can, unless given.
        """
        self.passes.current = Pass()  # no reference is left to a pass whose graph is gone
        if start is None:
            start = sum(one.samples for one in (ref() for ref in self._started) if one is not None)
        self.passes.current = Pass(start=start, done=self._done)
        self._started.append(weakref.ref(self.passes.current))
        return self.passes.current

    @property
    def seen(self) -> tuple[int, int]:
        """Samples of the step whose gradients came back, and how many of them had a row of the probes."""
        probed = (min(max(self.rows - one.start, 0), one.samples) for one in self._done)
        return sum(one.samples for one in self._done), sum(probed)

    def detach(self) -> None:
        """Remove the probes from the layers."""
        for layer in self.space.layers.values():
            layer.probe_w = layer.probe_a = layer.passes = None

    def zero_grad(self) -> None:
        """Begin a step: clear the gradients of probes and masks, and forget the passes."""
        self._started, self._done = [], []
        for leaf in self._leaves:
            leaf.grad = None

    def has_gradients(self) -> bool:
        """Whether a gradient has reached a probe or a mask; True where the space has no choice."""
        return not self._leaves or any(leaf.grad is not None for leaf in self._leaves)

    @torch.no_grad()
    def set_masks(self, kept: list[list[int]]) -> None:
        """Keep the named blocks of every prunable group."""
        for group, mask_C, blocks in zip(self.space.prunable, self._masks, kept, strict=True):
            keep_B = torch.zeros(self.space.blocks(group))
            keep_B[blocks] = 1
            mask_C.copy_(self.space.by_channel(group, keep_B))

    @torch.no_grad()
    def observe(self, samples: int, *, probed: int | None = None, grad_scale: float = 1.0) -> None:
        """Update the moments with the gradients of one step; this rank's loss is a mean over its `samples` samples.

        Args:
            probed: how many of the samples had a row of the probes; all that fit unless given.
            grad_scale: factor of all gradients, such as that of a `torch.amp.GradScaler`.

        A step is left out whose gradients are not finite, or which probed no sample.
        """
        if not self._leaves:
            return
        slope = partial(_gradient, scale=grad_scale)
        whole = [slope(probe) for probe in (*self._probes_w, *self._probes_a) if probe.dim() == 1]
        rows = [slope(probe) for probe in self._probes_a if probe.dim() == 2]
        d_RMJ = torch.stack(rows) * samples if rows else self._mean.new_zeros(0, 1, 1)
        masks = zip(self.space.prunable, self._masks, strict=True)
        blocks = [self.space.sum_by_block(group, slope(mask)) for group, mask in masks]
        counts = self._mean.new_tensor([samples, min(samples, self.rows) if probed is None else probed])
        d_W, d_B = (torch.cat([counts[:0], *parts]) / self._world for parts in (whole, blocks))
        reached = self._mean.new_tensor([float(leaf.grad is not None) for _, leaf in self._by_layer()])
        ours = [d_W, d_RMJ.sum(1).flatten(), d_RMJ.square().sum(1).flatten(), d_B, counts, reached]
        sums = torch.split(self._add(torch.cat(ours)), [len(part) for part in ours])
        d_W, sums_R, squares_R, d_B, counts, reached = sums
        if self.unreached:
            layers = zip(self._by_layer(), reached.tolist(), strict=True)
            self.unreached -= {name for (name, _), ranks in layers if ranks}
        # Scaled such that square - mean**2 is the variance over samples for weights, inputs and masks.
        d_W, d_B = d_W * counts[0].sqrt(), d_B * counts[0].sqrt()
        mean, square = torch.cat([d_W, sums_R / counts[1], d_B]), torch.cat([d_W**2, squares_R / counts[1], d_B**2])
        finite = mean.isfinite().all() & square.isfinite().all()
        self._mean.lerp_(torch.where(finite, mean, self._mean), 1 - MOMENTUM)
        self._square.lerp_(torch.where(finite, square, self._square), 1 - MOMENTUM)
        self._count += finite

    def _by_layer(self) -> list[tuple[str, Tensor]]:
        """Probes and masks, each with a layer that the loss depends on if a gradient comes back."""
        readers = (group.consumers[0] for group in self.space.prunable)
        return [*zip(self.space.searched, self._probes_w, strict=True), *zip(readers, self._masks, strict=True)]

    def losses(self) -> Losses:
        """The estimated loss of every choice, from the moments so far.

        Training recovers a part of the loss of rounded weights and removed filters, but not of activations.
        `SearchConfig.adaptation` is the part that stays.
        """
        seen = 1 - MOMENTUM ** max(1, self.count)
        mean, square = (moment.double().cpu().numpy() / seen for moment in (self._mean, self._square))
        loss = 0.5 * np.maximum(square - mean**2, 0)
        stays = self.space.config.adaptation
        searched = len(self.space.searched)
        j_w, j_a = (probes[0].shape[-1] if probes else 0 for probes in (self._probes_w, self._probes_a))
        split = np.split(loss, np.cumsum([searched * j_w, searched * j_a]))
        weights_SJ, inputs_SJ = split[0].reshape(searched, j_w), np.empty((searched, j_a))
        inputs_SJ[np.argsort(self._by_row, kind="stable")] = split[1].reshape(searched, j_a)
        sizes = [self.space.blocks(group) for group in self.space.prunable]
        return Losses(
            weights_SK=_monotone(weights_SJ) * stays,
            inputs_SK=_monotone(inputs_SJ),
            blocks=[part * stays for part in np.split(split[2], np.cumsum(sizes)[:-1])] if sizes else [],
        )

    def state_dict(self) -> dict[str, Any]:
        moments = {"mean": self._mean.clone(), "square": self._square.clone(), "count": self.count}
        return moments | {"unreached": sorted(self.unreached)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._mean.copy_(state_dict["mean"])
        self._square.copy_(state_dict["square"])
        self._count.fill_(state_dict["count"])
        self.unreached = set(state_dict.get("unreached", ()))


def _gradient(leaf: Tensor, scale: float) -> Tensor:
    # None where the network did not use the layer in this step.
    if leaf.grad is None:
        return torch.zeros_like(leaf)
    return leaf.grad if scale == 1 else leaf.grad / scale


def _monotone(loss_SJ: Floats) -> Floats:
    """Losses smoothed such that a finer level never costs more; a column of zeros for the finest is appended."""
    finest = np.zeros((len(loss_SJ), 1))
    return np.minimum.accumulate(np.concatenate([loss_SJ, finest], 1), 1)
