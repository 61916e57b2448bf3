"""What a plan costs: multiply-accumulates, Bit-Operations, bytes. Pure arithmetic, no framework.

    BOPs of a layer = MACs(kept in, kept out) * weight bits * activation bits

(Liu et al., TPAMI 2023, section 3.4; normalisation and activations do not count as BOPs.) Milliseconds are in
latency.py. The formulas use only operators, so they take floats, NumPy arrays or torch tensors alike: the search
differentiates the very arithmetic that the report prints.

Shapes: L what is paid for, layers first; X detours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sbs_train.contract.detour import Detour
from sbs_train.contract.target import Unit

FP32_BITS = 32
INT8_BITS = 8
"""What INT8 engines compute in: bits of the first and the last layer and of additions, and the least that narrower bits
cost there."""


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
    return bits if bits > INT8_BITS else INT8_BITS


def charged_channels(kept: int, size: int, multiple: int) -> int:
    """Channels that a target which computes in multiples charges for where `kept` of `size` remain.

    >>> charged_channels(17, 64, 16), charged_channels(32, 64, 16), charged_channels(9, 10, 4)
    (32, 32, 10)
    """
    return min(size, -(-kept // multiple) * multiple)


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

    @property
    def detours(self) -> Sequence[Detour]:
        """What bits of several layers decide together; paid on top of the items."""

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Cost of the items `rows` (indices or a slice), from their kept fractions and bits, all `(..., rows)`."""

    def of_detours(self, kept_in: Any, kept_out: Any) -> Any:
        """Cost of every detour if it is taken, from the kept fractions `(..., X)` of its item; may be negative."""


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
    detours: tuple[Detour, ...] = ()

    def of(self, kept_in: Any, kept_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """MACs left times bits."""
        macs = kept_macs(self.macs_L[rows], kept_in, kept_out, depthwise=self.depthwise_L[rows])
        return bops(macs, bits_w, bits_a)

    def of_detours(self, kept_in: Any, kept_out: Any) -> Any:
        """There are none."""
        return 0 * kept_in * kept_out
