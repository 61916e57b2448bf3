"""Milliseconds as a cost: measured surfaces over channels (device.json), interpolated. Pure arithmetic, as in cost.py.

What a target executes alike costs alike: one that computes in 8 bits charges the same for 2. Where bits do make it
execute something else, that is a detour, measured as a surface of its own.

Shapes: L what is paid for, layers first; X detours; I, J measured points of a surface.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract.detour import Detour
from sbs_train.contract.target import Unit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Values over kept channels, bilinear between the measured ones and constant below the fewest."""

    knots_in: Any
    """`(L, I)` ascending kept fractions of the inputs that were measured; the last is 1."""
    knots_out: Any
    """`(L, J)` likewise of the outputs."""
    first: Any
    """`(L)` at the fewest channels."""
    more_in: Any
    """`(L, I - 1)` what each step up in the inputs adds at the fewest outputs."""
    more_out: Any
    """`(L, J - 1)` likewise."""
    more_both: Any
    """`(L, I - 1, J - 1)` what both steps add beyond that."""

    @classmethod
    def of(cls, knots_in: Floats, knots_out: Floats, values: Floats) -> "Surfaces":
        """From measured `values` `(L, I, J)`."""
        return cls(
            knots_in=knots_in,
            knots_out=knots_out,
            first=values[:, 0, 0],
            more_in=np.diff(values[:, :, 0], axis=1),
            more_out=np.diff(values[:, 0, :], axis=1),
            more_both=np.diff(np.diff(values, axis=1), axis=2),
        )

    def at(self, kept_in: Any, kept_out: Any, rows: Any = slice(None)) -> Any:
        """Values `(..., rows)` of the surfaces `rows` at kept fractions of that shape."""
        rise_in, rise_out = _rises(kept_in, self.knots_in[rows]), _rises(kept_out, self.knots_out[rows])
        both = (rise_in[..., :, None] * rise_out[..., None, :] * self.more_both[rows]).sum(-1).sum(-1)
        one_way = (rise_in * self.more_in[rows]).sum(-1) + (rise_out * self.more_out[rows]).sum(-1)
        return self.first[rows] + one_way + both


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds on one device."""

    items: Surfaces
    detours: tuple[Detour, ...]
    instead: Surfaces
    """`(X)` of the items on their detours."""
    constant: float
    reference: float
    unit: Unit = "ms"

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Interpolated. Bits are free, and have the shape that the answer has."""
        return self.items.at(kept_in, kept_out, rows) + 0 * (bits_w * bits_a)

    def of_detours(self, kept_in: Any, kept_out: Any) -> Any:
        """What the detours take instead of what their items do."""
        items = [detour.item for detour in self.detours]
        return self.instead.at(kept_in, kept_out) - self.items.at(kept_in, kept_out, items)


def _rises(x: Any, knots: Any) -> Any:
    """How far `x` `(..., L)` has climbed every segment between `knots` `(L, K)`: 0 before it, 1 behind it."""
    left, right = knots[..., :-1], knots[..., 1:]
    part = (x[..., None] - left) / (right - left)
    return (abs(part) - abs(part - 1) + 1) / 2
