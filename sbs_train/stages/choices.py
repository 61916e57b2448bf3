"""Plans without a search: uniform bits, one width for every group, and rankings of blocks, within all limits.

Shapes: S searched layers; P prunable groups; B blocks of a group.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.plan import FLOAT_BITS, ChannelGroup, Plan
from sbs_train.network.network import Network
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.limits import SLACK, Limit
from sbs_train.stages.rankings import Ranking
from sbs_train.stages.rule import freeze

WIDTHS = 64
"""Width factors that are tried, in equal steps."""
PRUNED_BITS = 3
"""Most uniform bits at which the network is pruned to the limits."""

Bits = tuple[int, int]
"""Bits of weights and of activations."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One plan: bits of every searched layer, and kept blocks of every prunable group."""

    weights_S: tuple[int, ...]
    inputs_S: tuple[int, ...]
    blocks_P: tuple[tuple[int, ...], ...]


class Choices:
    """The choices of a network that are within all limits."""

    def __init__(self, network: Network, space: SearchSpace, limits: Sequence[Limit]) -> None:
        self.network, self.space, self.limits = network, space, limits
        self._channels_PB = [[space.channels(g, [b]) for b in range(space.blocks(g))] for g in space.prunable]

    def of(self, plan: Plan) -> Choice:
        """The choice that a plan holds."""
        rows = [plan.layer(name) for name in self.space.searched]
        kept = []
        for group, channels_B in zip(self.space.prunable, self._channels_PB, strict=True):
            left = set(plan.group(group.id).kept)
            kept.append(tuple(b for b, channels in enumerate(channels_B) if left.issuperset(channels)))
        return Choice(
            weights_S=tuple(row.bits_w for row in rows),
            inputs_S=tuple(row.bits_a for row in rows),
            blocks_P=tuple(kept),
        )

    def apply(self, choice: Choice) -> Plan:
        """Freeze the network to a choice, and return it as a plan."""
        both = choice.weights_S, choice.inputs_S
        bits_w, bits_a = (dict(zip(self.space.searched, bits, strict=True)) for bits in both)
        return freeze(self.network, bits_w, bits_a, self.space.kept(choice.blocks_P))

    def fits(self, choice: Choice) -> bool:
        """Whether a choice is within all limits."""
        fraction_P = self._fractions(choice)
        return all(
            self.space.total(choice.weights_S, choice.inputs_S, fraction_P, limit.cost) <= limit.most * (1 + SLACK)
            for limit in self.limits
        )

    def reduction(self, choice: Choice) -> float:
        """Cost of dense FP32 over that of a choice, in the unit of the search's cost."""
        return self.space.reduction(choice.weights_S, choice.inputs_S, self._fractions(choice))

    def simple(self, rankings: Mapping[str, Ranking]) -> dict[str, Choice]:
        """By name: the simple plans that fit, none of them twice.

        Args:
            rankings: importance of blocks, by the ranking's name; "magnitude" also says which filters a width keeps.
        """
        found = {f"uniform {_named(bits)}": self.uniform(bits) for bits in _finest(self._fitting())}
        for bits in self._bits_to_prune():
            width = self._widest(bits) or 0.0
            found[f"width {width:.2f} {_named(bits)}"] = self._of_width(bits, width, rankings["magnitude"])
            for name, ranking in rankings.items():
                found[f"{name} {_named(bits)}"] = self._ranked(bits, ranking)
        unique: dict[Choice, str] = {}
        for name, choice in found.items():
            if self.fits(choice):
                unique.setdefault(choice, name)
        return {name: choice for choice, name in unique.items()}

    def uniform(self, bits: Bits, blocks_P: tuple[tuple[int, ...], ...] | None = None) -> Choice:
        """The same bits in every searched layer, but 8 in the first and the last unless all are in float.

        Args:
            blocks_P: kept blocks; None for all.
        """
        space, fixed = self.space, self.network.topology.fixed
        weights_S, inputs_S = (
            tuple(INT8_BITS if n in fixed and b != FLOAT_BITS else b for n in space.searched) for b in bits
        )
        whole = tuple(tuple(range(space.blocks(group))) for group in space.prunable)
        return Choice(weights_S=weights_S, inputs_S=inputs_S, blocks_P=whole if blocks_P is None else blocks_P)

    def _fractions(self, choice: Choice) -> list[float]:
        groups = zip(self.space.prunable, self._channels_PB, choice.blocks_P, strict=True)
        return [sum(len(channels_B[b]) for b in blocks) / group.size for group, channels_B, blocks in groups]

    def _pairs(self) -> list[Bits]:
        """Every pair of candidate bits, the finest first."""
        floats = [(FLOAT_BITS, FLOAT_BITS)] if self.space.floats else []
        pairs = [*itertools.product(*self.network.candidates()), *floats]
        return sorted(pairs, key=lambda bits: (-bits[0] * bits[1], -bits[1]))

    def _fitting(self) -> list[Bits]:
        return [bits for bits in self._pairs() if self.fits(self.uniform(bits))]

    def _bits_to_prune(self) -> list[Bits]:
        """Bits that fit once the network is pruned, and are finer or leave it wider than all others; widest first."""
        fitting = self._fitting()
        widths = {bits: self._widest(bits) for bits in self._pairs() if bits not in fitting}
        found = {bits: width for bits, width in widths.items() if width is not None}

        def worse(bits: Bits, than: Bits) -> bool:
            return bits != than and all(map(int.__le__, bits, than)) and found[bits] <= found[than]

        best = [bits for bits in found if not any(worse(bits, other) for other in found)]
        return sorted(best, key=lambda bits: -found[bits])[:PRUNED_BITS]

    def _widest(self, bits: Bits) -> float | None:
        """The largest width factor that fits at these bits; None if no width does, or nothing can be pruned."""
        if not self.space.prunable:
            return None
        any_blocks = [[0.0] * self.space.blocks(group) for group in self.space.prunable]  # which ones costs alike
        widths = (step / WIDTHS for step in range(WIDTHS - 1, -1, -1))
        return next((width for width in widths if self.fits(self._of_width(bits, width, any_blocks))), None)

    def _of_width(self, bits: Bits, width: float, ranking: Ranking) -> Choice:
        """The most important blocks of every group, the same part of each; never fewer than a group has to keep."""
        blocks = []
        for group, importance_B in zip(self.space.prunable, ranking, strict=True):
            count = max(round(width * self.space.blocks(group)), self._fewest(group))
            order = sorted(range(len(importance_B)), key=lambda b: -importance_B[b])
            blocks.append(tuple(sorted(order[:count])))
        return self.uniform(bits, tuple(blocks))

    def _ranked(self, bits: Bits, ranking: Ranking) -> Choice:
        """Without the least important blocks of the whole network, as few as make it fit."""
        every = ((score, p, b) for p, importance_B in enumerate(ranking) for b, score in enumerate(importance_B))
        lost = Counter[int]()
        order = []
        for _, p, b in sorted(every):
            if lost[p] < self.space.prunable_blocks(self.space.prunable[p]):
                lost[p] += 1
                order.append((p, b))

        def without(count: int) -> Choice:
            gone = set(order[:count])
            kept = (tuple(b for b in range(len(row)) if (p, b) not in gone) for p, row in enumerate(ranking))
            return self.uniform(bits, tuple(kept))

        counts = range(len(order))
        return without(bisect_left(counts, True, key=lambda count: self.fits(without(count))))

    def _fewest(self, group: ChannelGroup) -> int:
        return self.space.blocks(group) - self.space.prunable_blocks(group)


def _finest(pairs: Sequence[Bits]) -> list[Bits]:
    """The pairs without another pair that is at least as fine in both: coarser bits only lose."""
    return [p for p in pairs if not any(p != q and p[0] <= q[0] and p[1] <= q[1] for q in pairs)]


def _named(bits: Bits) -> str:
    return "float" if bits[0] > INT8_BITS else f"W{bits[0]}A{bits[1]}"
