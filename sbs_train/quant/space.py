"""The choices of a search and their cost: bits of the searched layers, kept blocks of prunable groups.

Shapes: L items that cost something: all layers, then other steps that take time on a device; S searched layers; P
prunable groups; K candidate bits. Blocks are `block_size` filters that are pruned together.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract.config import SearchConfig
from sbs_train.contract.cost import FP32_BITS, Bops, Cost, bops
from sbs_train.contract.latency import DeviceCost
from sbs_train.contract.plan import ChannelGroup
from sbs_train.quant.layers import SBSLayer

Floats = npt.NDArray[np.float64]
ALL = slice(None)


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
        device: DeviceCost | None = None,
    ) -> None:
        """
        Args:
            fixed: names of the layers that keep their finest bits (the first and the last).
            float_bops: BOPs of the layers that always stay in float.
            device: cost of the network on a device, in milliseconds; None for a cost in BOPs.
        """
        self.config = config
        self.align = config.aligned_to(device.align if device else None)
        """Kept channels come in multiples of this."""
        self.block_size = -(-config.group_size // self.align) * self.align
        """Filters that are pruned together."""
        self.layers = layers
        self.searched = [name for name in layers if name not in fixed] if quantize else []
        self.prunable = [group for group in groups if group.prunable and prune and self.prunable_blocks(group)]
        # Searched layers share their candidates; fixed layers may have another grid.
        any_layer = layers[self.searched[0]] if self.searched else next(iter(layers.values()))
        self.bits_w = any_layer.grid_w.bits if any_layer.grid_w else ()
        self.bits_a = any_layer.grid_a.bits if any_layer.grid_a else ()
        self.device = any_layer.weight.device
        values, names = list(layers.values()), list(layers)
        position = {group.id: index for index, group in enumerate(self.prunable)}
        unpruned = len(position)
        others = device.others if device else ()
        outputs = [layers[step.follows].group_out for step in others if step.follows is not None]
        ends = [layer.group_in for layer in values] + outputs, [layer.group_out for layer in values] + outputs
        self.group_in, self.group_out = (np.array([position.get(group, unpruned) for group in end]) for end in ends)
        rest = np.zeros(len(others))
        self.fixed_bits_w = np.append([float(layer.bits_w) for layer in values], rest)
        self.fixed_bits_a = np.append([float(layer.bits_a) for layer in values], rest)
        self.row_S = np.array([names.index(name) for name in self.searched], np.int64)
        macs = np.append([float(layer.macs) for layer in values], rest)
        self.bops_cost = Bops(
            macs_L=macs,
            depthwise_L=np.append([float(layer.kind == "depthwise") for layer in values], rest),
            constant=float_bops,
            reference=bops(float(macs.sum()), FP32_BITS, FP32_BITS) + float_bops,
        )
        self.cost: Cost = device.latency if device else self.bops_cost
        """The cost that the target limits."""
        self._multiple = device.align if device else 1
        # Cached: many choices of bits are tried at equal channels.
        self._ms_of = lru_cache(maxsize=1024)(self._milliseconds)

    def blocks(self, group: ChannelGroup) -> int:
        """Blocks of a group's filters."""
        return -(-group.size // self.block_size)

    def sum_by_block(self, group: ChannelGroup, values_C: Tensor) -> Tensor:
        """`sum_B`: the values of a group's channels added up within every block."""
        blocks = self.blocks(group)
        return F.pad(values_C, (0, blocks * self.block_size - group.size)).view(blocks, self.block_size).sum(1)

    def by_channel(self, group: ChannelGroup, values_B: Tensor) -> Tensor:
        """`value_C`: for every channel of a group the value of its block."""
        return values_B.repeat_interleave(self.block_size)[: group.size]

    def channels(self, group: ChannelGroup, blocks: Collection[int]) -> list[int]:
        """Indices of a group's channels in the named blocks."""
        return [channel for channel in range(group.size) if channel // self.block_size in blocks]

    def prunable_blocks(self, group: ChannelGroup) -> int:
        """Most blocks of a group that may be pruned; one always stays."""
        blocks = self.blocks(group)
        if group.size % self.align:
            return 0
        return min(int(self.config.max_pruning_ratio * blocks), blocks - 1)

    def fraction(self, group: ChannelGroup, blocks: Any) -> Any:
        """The part of a group's channels in `blocks` blocks (a number or an array); the last block may be smaller."""
        return np.minimum(np.asarray(blocks) * self.block_size, group.size) / group.size

    def costs(self, cost: Cost, bits_w_L: Any, bits_a_L: Any, fraction_P: Floats, rows: Any = ALL) -> Floats:
        """Cost of the items `rows` for their bits and the kept fraction `(..., P)` of every prunable group."""
        fraction_in, fraction_out = self._ends(cost, fraction_P, rows)
        found: Floats = cost.of(fraction_in, fraction_out, bits_w_L, bits_a_L, rows)
        return found

    def _ends(self, cost: Cost, fraction_P: Floats, rows: Any) -> tuple[Floats, Floats]:
        """Fractions `(..., rows)` of input and output channels that the items `rows` are computed with."""
        if cost.unit == "ms" and self._multiple > 1:
            # The device computes up to the next multiple of its alignment.
            size_P = np.array([group.size for group in self.prunable], np.float64)
            channels_P = np.ceil(fraction_P * size_P / self._multiple - 1e-9) * self._multiple
            fraction_P = np.minimum(channels_P, size_P) / size_P
        fraction = np.concatenate([fraction_P, np.ones((*fraction_P.shape[:-1], 1))], -1)
        return fraction[..., self.group_in[rows]], fraction[..., self.group_out[rows]]

    def total(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike, fraction_P: npt.ArrayLike, cost: Cost) -> float:
        """Cost of the network for bits of the searched layers and kept fractions of the prunable groups."""
        kept = np.asarray(fraction_P, np.float64)
        if cost.unit == "ms":
            return cost.constant + self._ms_of(kept.tobytes())
        return cost.constant + float(self.costs(cost, *self.all_bits(bits_w_S, bits_a_S), kept).sum())

    def _milliseconds(self, fraction_P: bytes) -> float:
        """Milliseconds of all items for kept fractions, given as bytes, which are hashable."""
        return float(self.costs(self.cost, 0.0, 0.0, np.frombuffer(fraction_P)).sum())

    def all_bits(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike) -> tuple[Floats, Floats]:
        """`bits_w_L` and `bits_a_L` of all items from the bits of the searched layers."""
        bits_w_L, bits_a_L = self.fixed_bits_w.copy(), self.fixed_bits_a.copy()
        bits_w_L[self.row_S], bits_a_L[self.row_S] = bits_w_S, bits_a_S
        return bits_w_L, bits_a_L

    def bops(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike, fraction_P: npt.ArrayLike) -> float:
        """BOPs of the network."""
        return self.total(bits_w_S, bits_a_S, fraction_P, self.bops_cost)

    def reduction(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike, fraction_P: npt.ArrayLike) -> float:
        """Cost of dense FP32 over cost of the choice, in the target's unit."""
        return self.cost.reference / self.total(bits_w_S, bits_a_S, fraction_P, self.cost)

    def reachable(self) -> tuple[float, float]:
        """Reductions of the most and of the least expensive plan."""
        dearest = self.reduction(*self._bits_at(-1), [1.0] * len(self.prunable))
        return dearest, self.reduction(*self._bits_at(0), self._fewest())

    def least_bops(self) -> float:
        """BOPs of the plan with the coarsest bits and the fewest channels."""
        return self.bops(*self._bits_at(0), self._fewest())

    def _bits_at(self, level: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """All searched layers at one level, 0 the coarsest: bits of weights and of inputs."""
        weights, inputs = ((bits[level] for _ in self.searched) for bits in (self.bits_w, self.bits_a))
        return tuple(weights), tuple(inputs)

    def _fewest(self) -> list[float]:
        """The smallest fractions that the prunable groups may keep."""
        return [float(self.fraction(g, self.blocks(g) - self.prunable_blocks(g))) for g in self.prunable]
