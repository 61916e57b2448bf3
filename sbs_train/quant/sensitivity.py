"""Estimated loss of every choice: the curvature of the loss along each quantization offset and each block of filters.

A probe (`quantizer.py`) gives d = dL/dp for a step p from the finest level, or from float where float is a candidate,
towards level k; a mask gives d for a block of filters. Near a minimum the mean of d over images vanishes and its
variance is the Fisher information of p, which approximates the second derivative (Theis et al., arXiv 1801.05787):

    loss of choosing level k  =  1/2 Var_images(d_k)             up to what training recovers, see `Losses`

The variance over images is read off single images for activations, and off whole batches of N for weights and masks,
where it is N times the variance between steps. Both come out of the backward pass that training needs anyway.

Each of `world` processes (ranks) that train together sees every `world`-th image of a batch; sums over the ranks give
all of them the moments of a single process.

Shapes: S searched layers; P prunable groups; K levels, coarse to fine; B blocks of a group; M probed images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sbs_train.quant.space import SearchSpace

Floats = npt.NDArray[np.float64]

IMAGES = 16
"""Probed images of a batch: an eighth of the usual batch costs little and still gives 16 samples a step."""
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
        self.count = 0
        self._leaves: list[Tensor] = []
        layers = [space.layers[name] for name in space.searched]
        j_w, j_a = max(0, len(space.bits_w) - 1), max(0, len(space.bits_a) - 1)
        mine = len(range(rank, IMAGES, world))
        self._probes_w = [torch.zeros(j_w, device=space.device, requires_grad=True) for _ in layers]
        self._probes_a = [torch.zeros(mine, j_a, device=space.device, requires_grad=True) for _ in layers]
        self._masks = [torch.ones(group.size, device=space.device, requires_grad=True) for group in space.prunable]
        self._leaves = [*self._probes_w, *self._probes_a, *self._masks]
        size = len(layers) * (j_w + j_a) + sum(space.blocks(group) for group in space.prunable)
        self._mean = torch.zeros(size, device=space.device)
        self._square = torch.zeros(size, device=space.device)

    def attach(self) -> None:
        """Set the probes and the masks in the layers; needed again after a plan was applied."""
        for name, probe_w, probe_a in zip(self.space.searched, self._probes_w, self._probes_a, strict=True):
            layer = self.space.layers[name]
            layer.probe_w, layer.probe_a = probe_w, probe_a if len(probe_a) else None
        for group, mask in zip(self.space.prunable, self._masks, strict=True):
            for name in group.consumers:
                self.space.layers[name].mask_in = mask

    def probe_images(self, start: int, images: int) -> None:
        """Set the probes for a forward pass over a part of this rank's batch: `images` images from `start` on."""
        for name, probe_a in zip(self.space.searched, self._probes_a, strict=True):
            part = probe_a if start == 0 and images >= len(probe_a) else probe_a[start : start + images]
            self.space.layers[name].probe_a = part if len(part) else None

    def detach(self) -> None:
        """Remove the probes from the layers."""
        for name in self.space.searched:
            self.space.layers[name].probe_w = self.space.layers[name].probe_a = None

    def zero_grad(self) -> None:
        """Clear the gradients of probes and masks; call before a backward pass."""
        for leaf in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def set_masks(self, kept: list[list[int]]) -> None:
        """Keep the named blocks of every prunable group."""
        for group, mask_C, blocks in zip(self.space.prunable, self._masks, kept, strict=True):
            keep_B = torch.zeros(self.space.blocks(group))
            keep_B[blocks] = 1
            mask_C.copy_(self.space.by_channel(group, keep_B))

    @torch.no_grad()
    def observe(self, images: int) -> None:
        """Update the moments with the gradients of one step; this rank's loss is a mean over its `images` images."""
        if not self._leaves:
            return
        means, sums, squares = [], [], []
        if self._probes_w:
            means.append(torch.stack([_gradient(probe) for probe in self._probes_w]))
            d_SMJ = torch.stack([_gradient(probe) for probe in self._probes_a]) * images
            sums.append(d_SMJ.sum(1))
            squares.append(d_SMJ.square().sum(1))
        masks = zip(self.space.prunable, self._masks, strict=True)
        blocks = [self.space.sum_by_block(group, _gradient(mask)) for group, mask in masks]
        ours = [[mean / self._world for mean in means], sums, squares, [mean / self._world for mean in blocks]]
        flat = [torch.cat([part.flatten() for part in parts]) if parts else self._mean[:0] for parts in ours]
        weights, sums_a, squares_a, d_B = torch.split(self._add(torch.cat(flat)), [len(part) for part in flat])
        images *= self._world
        probed = min(IMAGES, images)
        # Scaled such that square - mean**2 is the variance over images for weights, inputs and masks.
        mean = torch.cat([weights, sums_a / probed / images**0.5, d_B]) * images**0.5
        square = torch.cat([weights.square() * images, squares_a / probed, d_B.square() * images])
        self._mean.lerp_(mean, 1 - MOMENTUM)
        self._square.lerp_(square, 1 - MOMENTUM)
        self.count += 1

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
        weights_SJ, inputs_SJ = split[0].reshape(searched, j_w), split[1].reshape(searched, j_a)
        sizes = [self.space.blocks(group) for group in self.space.prunable]
        return Losses(
            weights_SK=_monotone(weights_SJ) * stays,
            inputs_SK=_monotone(inputs_SJ),
            blocks=[part * stays for part in np.split(split[2], np.cumsum(sizes)[:-1])] if sizes else [],
        )

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean, "square": self._square, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._mean.copy_(state_dict["mean"])
        self._square.copy_(state_dict["square"])
        self.count = state_dict["count"]


def _gradient(leaf: Tensor) -> Tensor:
    # None where the network did not use the layer in this step.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _monotone(loss_SJ: Floats) -> Floats:
    """Losses smoothed such that a finer level never costs more; a column of zeros for the finest is appended."""
    finest = np.zeros((len(loss_SJ), 1))
    return np.minimum.accumulate(np.concatenate([loss_SJ, finest], 1), 1)
