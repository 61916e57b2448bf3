"""What a plan costs: multiply-accumulates, Bit-Operations, bytes, milliseconds. Pure arithmetic, no framework.

    BOPs of a layer    = MACs(kept in, kept out) * weight bits * activation bits
    latency of a layer = its measured surface (device.json) at (kept in, kept out), whatever the bits: a target that
                         computes in 8 bits charges the same for 2

(Liu et al., TPAMI 2023, section 3.4; normalisation and activations do not count as BOPs.) The formulas use only
operators, so they take floats, NumPy arrays or torch tensors alike: the search differentiates the very
arithmetic that the report prints.

Shapes: L what is paid for, layers first; I, J measured points of a surface.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sbs_train.contract.target import Unit

Floats = npt.NDArray[np.float64]

FP32_BITS = 32
CONTAINER_BITS = 8


def bops(macs: Any, bits_w: Any, bits_a: Any) -> Any:
    """Bit-Operations of `macs` multiply-accumulates at the given bitwidths; FP32 counts 32 * 32 = 1024 each."""
    return macs * bits_w * bits_a


def kept_macs(macs: Any, kept_in: Any, kept_out: Any, *, depthwise: Any) -> Any:
    """MACs left after pruning, from the dense count and the kept fractions of input and output channels.

    `depthwise` is 1 or 0: a depthwise layer has one input channel an output channel, so its cost falls only once.
    """
    return macs * kept_out * (depthwise + (1 - depthwise) * kept_in)


def deployable_bits(bits: int) -> int:
    """Bits that INT8 hardware spends on a tensor of `bits` bits: convolutions have no narrower compute type."""
    return bits if bits > CONTAINER_BITS else CONTAINER_BITS


def weight_bytes(weights: float, bits_w: int) -> float:
    """Bytes that `weights` values take when packed at `bits_w` bits."""
    return weights * bits_w / 8


class Cost(Protocol):
    """What a search pays with: the sum over everything in the network that kept channels or bits make cheaper."""

    @property
    def unit(self) -> Unit:
        """What it is counted in."""

    @property
    def constant(self) -> float:
        """What is paid whatever is decided."""

    @property
    def reference(self) -> float:
        """The dense network in FP32, which reductions are relative to."""

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Cost of the items `rows` (indices or a slice), from their kept fractions and bits, all `(..., rows)`."""


@dataclass(frozen=True, kw_only=True)
class Bops:
    """Bit-Operations."""

    macs_L: Any
    depthwise_L: Any
    """1 or 0."""
    constant: float
    """Of the layers that stay in float."""
    reference: float
    unit: Unit = "BOPs"

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """MACs left times bits."""
        macs = kept_macs(self.macs_L[rows], kept_in, kept_out, depthwise=self.depthwise_L[rows])
        return bops(macs, bits_w, bits_a)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds on one device, interpolated between measured channels; bits do not matter."""

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
    constant: float
    reference: float
    unit: Unit = "ms"

    @classmethod
    def of_surfaces(
        cls, knots_in: Floats, knots_out: Floats, ms: Floats, *, constant: float, reference: float
    ) -> "Latency":
        """From measured times `ms` `(L, I, J)`."""
        return cls(
            knots_in=knots_in,
            knots_out=knots_out,
            first=ms[:, 0, 0],
            more_in=np.diff(ms[:, :, 0], axis=1),
            more_out=np.diff(ms[:, 0, :], axis=1),
            more_both=np.diff(np.diff(ms, axis=1), axis=2),
            constant=constant,
            reference=reference,
        )

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Bilinear; constant below the fewest channels that were measured."""
        rise_in, rise_out = _rises(kept_in, self.knots_in[rows]), _rises(kept_out, self.knots_out[rows])
        both = (rise_in[..., :, None] * rise_out[..., None, :] * self.more_both[rows]).sum(-1).sum(-1)
        one_way = (rise_in * self.more_in[rows]).sum(-1) + (rise_out * self.more_out[rows]).sum(-1)
        # Bits are free, and have the shape that the answer has.
        return self.first[rows] + one_way + both + 0 * (bits_w * bits_a)


def _rises(x: Any, knots: Any) -> Any:
    """How far `x` `(..., L)` has climbed every segment between `knots` `(L, K)`: 0 before it, 1 behind it."""
    left, right = knots[..., :-1], knots[..., 1:]
    part = (x[..., None] - left) / (right - left)
    return (abs(part) - abs(part - 1) + 1) / 2
