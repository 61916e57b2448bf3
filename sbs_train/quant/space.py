"""What a search decides, and what every decision costs: bits of the searched layers, kept blocks of prunable groups.

Shapes: L all layers; S searched layers; P prunable groups. Blocks are `block_size` filters that are pruned together.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract import cost
from sbs_train.contract.config import SearchConfig
from sbs_train.contract.plan import ChannelGroup
from sbs_train.quant.layers import SBSLayer

Floats = npt.NDArray[np.float64]


class SearchSpace:
    """The open choices of a network."""

    def __init__(
        self,
        layers: dict[str, SBSLayer],
        groups: list[ChannelGroup],
        config: SearchConfig,
        *,
        fixed: set[str],
        prune: bool,
        quantize: bool,
        float_bops: float = 0.0,
    ) -> None:
        """`fixed` names the layers that keep their finest bits (the first and the last).

        `float_bops` is what layers cost that stay in float whatever is decided.
        """
        self.config = config
        self.float_bops = float_bops
        self.block_size = -(-config.group_size // config.align) * config.align
        """Filters that are pruned together."""
        self.layers = layers
        self.searched = [name for name in layers if name not in fixed] if quantize else []
        self.prunable = [group for group in groups if group.prunable and prune and self.prunable_blocks(group)]
        # Searched layers share their candidates; the fixed ones may have another grid.
        any_layer = layers[self.searched[0]] if self.searched else next(iter(layers.values()))
        self.bits_w = any_layer.grid_w.bits if any_layer.grid_w else ()
        self.bits_a = any_layer.grid_a.bits if any_layer.grid_a else ()
        self.device = any_layer.weight.device
        values, names = list(layers.values()), list(layers)
        position = {group.id: index for index, group in enumerate(self.prunable)}
        unpruned = len(position)
        self.fixed_bits_w = np.array([layer.bits_w for layer in values], np.float64)
        self.fixed_bits_a = np.array([layer.bits_a for layer in values], np.float64)
        self.macs = np.array([layer.macs for layer in values], np.float64)
        self.depthwise = np.array([layer.kind == "depthwise" for layer in values], np.float64)
        self.group_in = np.array([position.get(layer.group_in, unpruned) for layer in values])
        self.group_out = np.array([position.get(layer.group_out, unpruned) for layer in values])
        self.row_S = np.array([names.index(name) for name in self.searched], np.int64)

    def blocks(self, group: ChannelGroup) -> int:
        """Blocks of a group's filters."""
        return -(-group.size // self.block_size)

    def prunable_blocks(self, group: ChannelGroup) -> int:
        """How many of them may go at most; one always stays."""
        blocks = self.blocks(group)
        if group.size % self.config.align:
            return 0
        return min(int(self.config.max_pruning_ratio * blocks), blocks - 1)

    def fraction(self, group: ChannelGroup, blocks: Any) -> Any:
        """The part of a group's channels in `blocks` blocks, a number or an array; the last block may be smaller."""
        return np.minimum(np.asarray(blocks) * self.block_size, group.size) / group.size

    def kept_macs(self, kept_P: Floats) -> Floats:
        """`macs_L` left of every layer for the kept fraction of every prunable group."""
        fraction = np.append(kept_P, 1.0)
        macs: Floats = cost.kept_macs(
            self.macs, fraction[self.group_in], fraction[self.group_out], depthwise=self.depthwise
        )
        return macs

    def bops(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike, kept_P: npt.ArrayLike) -> float:
        """BOPs of the network for bits of the searched layers and kept fractions of the prunable groups."""
        bits_w_L, bits_a_L = self.fixed_bits_w.copy(), self.fixed_bits_a.copy()
        bits_w_L[self.row_S], bits_a_L[self.row_S] = bits_w_S, bits_a_S
        searched = cost.bops(self.kept_macs(np.asarray(kept_P, np.float64)), bits_w_L, bits_a_L).sum()
        return self.float_bops + float(searched)

    def reachable(self) -> tuple[float, float]:
        """BOPs of the cheapest and of the most expensive plan."""
        none: tuple[int, ...] = ()
        if not self.searched:
            bits = [(none, none), (none, none)]
        else:
            count = len(self.searched)
            bits = [((self.bits_w[end],) * count, (self.bits_a[end],) * count) for end in (0, -1)]
        least = [self.fraction(g, self.blocks(g) - self.prunable_blocks(g)) for g in self.prunable]
        return self.bops(*bits[0], least), self.bops(*bits[1], [1.0] * len(self.prunable))
