"""Where bits make a target execute a layer in another way. A cost that goes by such detours is paid for them together.

Shapes: L what is paid for, layers first.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CoarseInput:
    """The input of a layer has so few bits that a target has quicker kernels for it."""

    layer: int
    bits: int
    """So many, or fewer."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Whose bits decide."""
        return (self.layer,)

    def holds(self, bits_a_L: Any) -> bool:
        """Whether it is so for these bits of all inputs."""
        return bool(bits_a_L[self.layer] <= self.bits)


@dataclass(frozen=True, kw_only=True)
class ReadersDiffer:
    """A tensor is wanted at different bits, so no one quantizer serves all of its readers."""

    layers: tuple[int, ...]
    """Readers whose bits decide."""
    others: frozenset[int]
    """Bits that all other readers want."""

    def holds(self, bits_a_L: Any) -> bool:
        """Whether it is so for these bits of all inputs."""
        return len({int(bits_a_L[layer]) for layer in self.layers} | self.others) > 1


@dataclass(frozen=True, kw_only=True)
class Detour:
    """Another way in which a target executes an item where bits make it."""

    item: int
    causes: tuple[CoarseInput | ReadersDiffer, ...]
    """Any of them is enough."""

    @property
    def layers(self) -> set[int]:
        """Whose bits decide."""
        return {layer for cause in self.causes for layer in cause.layers}

    def taken(self, bits_a_L: Any) -> bool:
        """Whether these bits of all inputs make the target go there."""
        return any(cause.holds(bits_a_L) for cause in self.causes)
