"""Single moves around a plan: one choice becomes finer and another coarser, so that the cost stays within the limits.

A choice is the bits of a layer's weights, the bits of its input, or a block of a group's filters. What a search
estimates layer by layer cannot see what layers do together; a move is tried on the whole network instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.choices import Choice, Choices

WAYS = 24
"""Most ways up, and ways down, that are combined into moves: those with the best estimates."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One choice changed."""

    name: str
    field: str
    """The field of `Choice` that changes, at `index`."""
    index: int
    to: int | tuple[int, ...]
    loss: float
    """Estimated change of the loss."""

    def of(self, choice: Choice) -> Choice:
        """`choice` with the change."""
        values = list(getattr(choice, self.field))
        values[self.index] = self.to
        return replace(choice, **{self.field: tuple(values)})


class Moves:
    """The moves of a network, the most promising first."""

    def __init__(self, choices: Choices, losses: Losses | None, seed: int) -> None:
        """Without estimated `losses` moves come in a random order."""
        self.choices, self.space, self.losses, self.seed = choices, choices.space, losses, seed
        self.bits_w, self.bits_a = map(tuple, choices.network.candidates())

    def around(self, choice: Choice) -> list[tuple[str, Choice]]:
        """Moves that keep `choice` within the limits, each with its name, by their estimated loss."""
        ways = list(self._ways(choice))
        Random(self.seed).shuffle(ways)
        ways.sort(key=lambda way: way[1].loss)
        ups, downs = ([way for is_up, way in ways if is_up == up][:WAYS] for up in (True, False))
        pairs = [(up, down) for up in ups for down in downs if (up.field, up.index) != (down.field, down.index)]
        pairs.sort(key=lambda pair: pair[0].loss + pair[1].loss)
        moved = [(f"{up.name}, {down.name}", down.of(up.of(choice))) for up, down in pairs]
        free = [(up.name, up.of(choice)) for up in ups]
        return [(name, found) for name, found in free + moved if self.choices.fits(found)]

    def _ways(self, choice: Choice) -> Iterator[tuple[bool, Way]]:
        """(whether it is finer, way) of every change of one choice."""
        for field, kind, bits_K in (("weights_S", "weights", self.bits_w), ("inputs_S", "input", self.bits_a)):
            for s, (layer, bits) in enumerate(zip(self.space.searched, getattr(choice, field), strict=True)):
                if bits not in bits_K:
                    continue  # in float
                k = bits_K.index(bits)
                for to in range(len(bits_K)):
                    if to != k:
                        name = f"{kind} of {layer} {bits} → {bits_K[to]} bits"
                        loss = self._loss(field, s, k, to)
                        yield to > k, Way(name=name, field=field, index=s, to=bits_K[to], loss=loss)
        for p, (group, kept) in enumerate(zip(self.space.prunable, choice.blocks_P, strict=True)):
            loss_B = self.losses.blocks[p] if self.losses else [0.0] * self.space.blocks(group)
            gone = [b for b in range(self.space.blocks(group)) if b not in kept]
            if gone:
                b = max(gone, key=lambda b: float(loss_B[b]))
                to_more = tuple(sorted((*kept, b)))
                name = f"a block more of {group.id}"
                yield True, Way(name=name, field="blocks_P", index=p, to=to_more, loss=-float(loss_B[b]))
            if len(gone) < self.space.prunable_blocks(group):
                b = min(kept, key=lambda b: float(loss_B[b]))
                name, to_less = f"a block less of {group.id}", tuple(c for c in kept if c != b)
                yield False, Way(name=name, field="blocks_P", index=p, to=to_less, loss=float(loss_B[b]))

    def _loss(self, field: str, s: int, now: int, to: int) -> float:
        if self.losses is None:
            return 0.0
        loss_SK = self.losses.weights_SK if field == "weights_S" else self.losses.inputs_SK
        return float(loss_SK[s, to] - loss_SK[s, now])
