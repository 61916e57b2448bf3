"""The choices of a search and their cost: bits of the searched layers, kept blocks of prunable groups.

Shapes: L items that cost something: all layers, then those that are in float on a device; S searched layers; P
prunable groups; K candidate bits. A block of a group are filters that are pruned together.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract.config import SearchConfig
from sbs_train.contract.cost import FP32_BITS, INT8_BITS, Bops, Cost, bops, channel_step
from sbs_train.contract.latency import Latency, is_float
from sbs_train.contract.plan import ChannelGroup
from sbs_train.quant.layers import SBSLayer

Floats = npt.NDArray[np.float64]
ALL = slice(None)
TURNS = 3
"""Turns of channels and precisions in the search for the cheapest plan."""


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
        kept: Collection[str] = (),
        float_bops: float = 0.0,
        device: Latency | None = None,
    ) -> None:
        """
        Args:
            fixed: names of the layers that keep their finest bits (the first and the last), or stay in float.
            kept: names of further layers that keep the bits they have.
            float_bops: BOPs of the layers that always stay in float.
            device: cost of the network on a device, in milliseconds; None for a cost in BOPs.
        """
        self.config, self._measured = config, device is not None
        self.layers = layers
        fixed = fixed | set(kept)
        # Searched layers share their candidates; a fixed layer may have another grid.
        any_layer = next((layer for name, layer in layers.items() if name not in fixed), next(iter(layers.values())))
        self.bits_w = any_layer.grid_w.bits if any_layer.grid_w else ()
        self.bits_a = any_layer.grid_a.bits if any_layer.grid_a else ()
        self.floats = self._measured and quantize and config.metric == "loss"
        """Whether float is a candidate: the last bits of weights and inputs, together. It costs no accuracy."""
        alike = {
            name
            for name in fixed & set(layers) - set(kept)
            if self.floats and _bits_of(layers[name]) == _bits_of(any_layer)
        }
        self.searched = [name for name in layers if name not in fixed or name in alike] if quantize else []
        self.finest_S = np.array([name in fixed for name in self.searched], bool)
        """Searched layers of which only the finest bits and float are candidates."""
        if self.floats:
            self.bits_w, self.bits_a = (*self.bits_w, FP32_BITS), (*self.bits_a, FP32_BITS)
        self.prunable = [group for group in groups if group.prunable and prune and self.prunable_blocks(group)]
        self.device = any_layer.weight.device
        values, names = list(layers.values()), list(layers)
        position = {group.id: index for index, group in enumerate(self.prunable)}
        unpruned = len(position)
        others = len(device.follows_L) - len(layers) if device else 0
        in_float = np.full(others, float(FP32_BITS))
        ends = [layer.group_in for layer in values], [layer.group_out for layer in values]
        self.group_in, self.group_out = (
            np.array([position.get(group, unpruned) for group in end] + [unpruned] * others) for end in ends
        )
        self.fixed_bits_w = np.append([float(layer.bits_w) for layer in values], in_float)
        self.fixed_bits_a = np.append([float(layer.bits_a) for layer in values], in_float)
        self.row_S = np.array([names.index(name) for name in self.searched], np.int64)
        macs = np.append([float(layer.macs) for layer in values], np.zeros(others))
        self.bops_cost = Bops(
            macs_L=macs,
            depthwise_L=np.append([float(layer.kind == "depthwise") for layer in values], np.zeros(others)),
            constant=float_bops,
            reference=bops(float(macs.sum()), FP32_BITS, FP32_BITS) + float_bops,
        )
        self.cost: Cost = device or self.bops_cost
        """The cost that the target limits."""
        self.follows_L = device.follows_L if device else np.arange(len(values))
        """Index of the item before every item; its own where there is none."""
        self._leaves_first = _leaves_first(self.follows_L)
        self._size_P = np.array([group.size for group in self.prunable], np.float64)
        self._step_P = np.array([channel_step(group.size) for group in self.prunable], np.float64)
        # Cached: many choices of bits are tried at equal channels.
        self._ms_of = lru_cache(maxsize=1024)(self._milliseconds)

    def block_size(self, group: ChannelGroup) -> int:
        """Filters of a group that are pruned together: `group_size`, rounded up to a multiple of the group's step."""
        multiple = self.config.multiple_for(group.size, self._measured)
        return -(-self.config.group_size // multiple) * multiple

    def blocks(self, group: ChannelGroup) -> int:
        """Blocks of a group's filters."""
        return -(-group.size // self.block_size(group))

    def sum_by_block(self, group: ChannelGroup, values_C: Tensor) -> Tensor:
        """`sum_B`: the values of a group's channels added up within every block."""
        blocks, each = self.blocks(group), self.block_size(group)
        return F.pad(values_C, (0, blocks * each - group.size)).view(blocks, each).sum(1)

    def by_channel(self, group: ChannelGroup, values_B: Tensor) -> Tensor:
        """`value_C`: for every channel of a group the value of its block."""
        return values_B.repeat_interleave(self.block_size(group))[: group.size]

    def channels(self, group: ChannelGroup, blocks: Collection[int]) -> list[int]:
        """Indices of a group's channels in the named blocks."""
        each = self.block_size(group)
        return [channel for channel in range(group.size) if channel // each in blocks]

    def kept(self, blocks_P: Iterable[Collection[int]]) -> dict[str, list[int]]:
        """Indices of the channels in the named blocks of every prunable group, by group."""
        return {group.id: self.channels(group, blocks) for group, blocks in zip(self.prunable, blocks_P, strict=True)}

    def prunable_blocks(self, group: ChannelGroup) -> int:
        """Most blocks of a group that may be pruned; one always stays."""
        blocks = self.blocks(group)
        if group.size % self.config.multiple_for(group.size, self._measured):
            return 0
        return min(int(self.config.max_pruning_ratio * blocks), blocks - 1)

    def fraction(self, group: ChannelGroup, blocks: Any) -> Any:
        """The part of a group's channels in `blocks` blocks (a number or an array); the last block may be smaller."""
        return np.minimum(np.asarray(blocks) * self.block_size(group), group.size) / group.size

    def costs(self, cost: Cost, bits_w_L: Any, bits_a_L: Any, fraction_P: Floats, rows: Any = ALL) -> Floats:
        """Cost of the items `rows` for their bits and the kept fraction `(..., P)` of every prunable group.

        Without what changes of precision cost, see `switches`.
        """
        fraction_in, fraction_out = self._ends(cost, fraction_P, rows)
        found: Floats = cost.of(fraction_in, fraction_out, bits_w_L, bits_a_L, rows)
        return found

    def switches(self, cost: Cost, fraction_P: Floats) -> Floats:
        """Cost `(..., L)` that an item has besides where the item before it has another precision."""
        found: Floats = cost.switches(self._ends(cost, fraction_P, ALL)[0])
        return found

    def changed(self, bits_w_L: Any, bits_a_L: Any) -> npt.NDArray[np.bool_]:
        """`(L)`: whether the item before an item has another precision, INT8 or float."""
        in_float_L = is_float(bits_w_L, bits_a_L)
        found: npt.NDArray[np.bool_] = in_float_L != in_float_L[self.follows_L]
        return found

    def precisions(self, quantized_S: Floats, float_S: Floats, switch_L: Floats) -> npt.NDArray[np.bool_]:
        """Which searched layers are best in float, where the sum of values and of changes of precision is least.

        Every item has at most one item before it, so the items are trees, and the best choice is found from the leaves
        to the roots (Viterbi's algorithm).

        Args:
            quantized_S: value of every searched layer in its best bits.
            float_S: value of every searched layer in float.
            switch_L: value of a change of precision before every item.
        """
        fixed_L = is_float(self.fixed_bits_w, self.fixed_bits_a)
        values_L2 = np.where(np.stack([fixed_L, ~fixed_L], 1), np.inf, 0.0)
        values_L2[self.row_S] = np.stack([quantized_S, float_S], 1)
        values, follows, switch = values_L2.tolist(), self.follows_L.tolist(), switch_L.tolist()
        for item in self._leaves_first:
            if follows[item] != item:
                before, (quantized, in_float) = values[follows[item]], values[item]
                before[0] += min(quantized, in_float + switch[item])
                before[1] += min(in_float, quantized + switch[item])
        chosen = np.zeros(len(values), bool)
        for item in reversed(self._leaves_first):
            quantized, in_float = values[item]
            if follows[item] != item:
                quantized, in_float = (
                    (quantized + switch[item], in_float)
                    if chosen[follows[item]]
                    else (quantized, in_float + switch[item])
                )
            chosen[item] = in_float < quantized
        return chosen[self.row_S]

    def _ends(self, cost: Cost, fraction_P: Floats, rows: Any) -> tuple[Floats, Floats]:
        """Fractions `(..., rows)` of input and output channels that the items `rows` are computed with."""
        if cost.unit == "ms":
            # Between two measured numbers of channels lie slow ones: a layer costs what the next multiple does.
            channels_P = np.ceil(fraction_P * self._size_P / self._step_P - 1e-9) * self._step_P
            fraction_P = np.minimum(channels_P, self._size_P) / self._size_P
        fraction = np.concatenate([fraction_P, np.ones((*fraction_P.shape[:-1], 1))], -1)
        return fraction[..., self.group_in[rows]], fraction[..., self.group_out[rows]]

    def total(self, bits_w_S: npt.ArrayLike, bits_a_S: npt.ArrayLike, fraction_P: npt.ArrayLike, cost: Cost) -> float:
        """Cost of the network for bits of the searched layers and kept fractions of the prunable groups."""
        kept, bits_L = np.asarray(fraction_P, np.float64), self.all_bits(bits_w_S, bits_a_S)
        if cost.unit == "ms":
            return cost.constant + self._ms_of(is_float(*bits_L).tobytes(), kept.tobytes())
        return cost.constant + float(self.costs(cost, *bits_L, kept).sum())

    def _milliseconds(self, in_float_L: bytes, fraction_P: bytes) -> float:
        """Milliseconds of all items, from arrays given as bytes, which are hashable."""
        bits_L = np.where(np.frombuffer(in_float_L, bool), FP32_BITS, INT8_BITS)
        kept = np.frombuffer(fraction_P)
        switches = self.switches(self.cost, kept)[self.changed(bits_L, bits_L)]
        return float(self.costs(self.cost, bits_L, bits_L, kept).sum() + switches.sum())

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
        whole = [1.0] * len(self.prunable)
        dearest = [self.reduction(*self._bits_at(level), whole) for level in ((-2, -1) if self.floats else (-1,))]
        return min(dearest), self.reduction(*self.cheapest())

    def least_bops(self) -> float:
        """BOPs of the plan with the coarsest bits and the fewest channels."""
        return self.bops(*self._bits_at(0), self._fewest())

    def _bits_at(self, level: int) -> tuple[Floats, Floats]:
        """All searched layers at one level, 0 the coarsest: bits of weights and of inputs."""
        finest = -2 if self.floats else -1
        weights, inputs = (
            np.where(self.finest_S & (level == 0), bits[finest], bits[level]).astype(np.float64)
            if bits
            else np.zeros(0)
            for bits in (self.bits_w, self.bits_a)
        )
        return weights, inputs

    def cheapest(self) -> tuple[Floats, Floats, Floats]:
        """Bits and kept fractions of the plan with the least cost.

        On a device fewer channels may cost more, and float less than INT8, so groups and precisions take turns.
        """
        (weights, inputs), kept = self._bits_at(0), np.array(self._fewest())
        if self.cost.unit != "ms":
            return weights, inputs, kept
        for _ in range(TURNS):
            if self.floats:
                quantized_S, float_S = (
                    self.costs(self.cost, bits, bits, kept, self.row_S) for bits in (INT8_BITS, FP32_BITS)
                )
                in_float = self.precisions(quantized_S, float_S, self.switches(self.cost, kept))
                weights, inputs = (np.where(in_float, FP32_BITS, bits) for bits in self._bits_at(0))
            for p, group in enumerate(self.prunable):
                tried = np.repeat(kept[None], self.prunable_blocks(group) + 1, 0)
                tried[:, p] = self.fraction(
                    group, np.arange(self.blocks(group) - len(tried) + 1, self.blocks(group) + 1)
                )
                kept = tried[np.argmin([self.total(weights, inputs, one, self.cost) for one in tried])]
        return weights, inputs, kept

    def _fewest(self) -> list[float]:
        """The smallest fractions that the prunable groups may keep."""
        return [float(self.fraction(g, self.blocks(g) - self.prunable_blocks(g))) for g in self.prunable]


def _bits_of(layer: SBSLayer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert layer.grid_w is not None and layer.grid_a is not None
    return layer.grid_w.bits, layer.grid_a.bits


def _leaves_first(follows_L: npt.NDArray[np.int64]) -> list[int]:
    """Items in an order in which every item comes before the one that it follows."""
    depth_L, at_L = np.zeros(len(follows_L), np.int64), np.arange(len(follows_L))
    while (below_L := follows_L[at_L] != at_L).any():
        depth_L += below_L
        at_L = follows_L[at_L]
    order: list[int] = np.argsort(-depth_L, kind="stable").tolist()
    return order
