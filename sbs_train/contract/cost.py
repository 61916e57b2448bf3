"""What a plan costs: multiply-accumulates, Bit-Operations, bytes. Pure arithmetic, no framework.

    BOPs of a layer = MACs(kept in, kept out) * weight bits * activation bits

(Liu et al., TPAMI 2023, section 3.4; normalisation and activations do not count as BOPs.) Milliseconds are in
latency.py. The formulas use only operators, so they take floats, NumPy arrays or torch tensors alike: the search
differentiates the very arithmetic that the report prints.

Shapes: L items that cost something, layers first.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from sbs_train.contract.target import Unit

FP32_BITS = 32
INT8_BITS = 8
"""Bits that INT8 engines compute in: the first and the last layer and additions have 8 bits, and fewer bits cost as
much as 8."""


def bops(macs: Any, bits_w: Any, bits_a: Any) -> Any:
    """Bit-Operations of `macs` multiply-accumulates at the given bitwidths; FP32 counts 32 * 32 = 1024 each."""
    return macs * bits_w * bits_a


def kept_macs(macs: Any, fraction_in: Any, fraction_out: Any, *, depthwise: Any) -> Any:
    """MACs left after pruning, from the dense count and the kept fractions of input and output channels.

    `depthwise` is 1 or 0: a depthwise layer has one input channel an output channel, so its cost falls only once.
    """
    return macs * fraction_out * (depthwise + (1 - depthwise) * fraction_in)


def deployable_bits(bits: int) -> int:
    """Bits that INT8 hardware spends on a tensor of `bits` bits: convolutions have no narrower compute type."""
    return bits if bits > INT8_BITS else INT8_BITS


def computed_channels(kept: int, size: int, multiple: int) -> int:
    """Channels that a backend computes where `kept` of `size` remain: rounded up to a `multiple`, at most `size`.

    >>> computed_channels(17, 64, 16), computed_channels(32, 64, 16), computed_channels(9, 10, 4)
    (32, 32, 10)
    """
    return min(size, -(-kept // multiple) * multiple)


def channel_step(size: int) -> int:
    """Multiple in which the channels of a group of `size` are measured and pruned.

    The largest power of 2 up to 16 that divides `size` into four parts or more; 1 if none does.

    >>> channel_step(64), channel_step(16), channel_step(24), channel_step(6)
    (16, 4, 4, 1)
    """
    return next((step for step in (16, 8, 4, 2) if size % step == 0 and size >= 4 * step), 1)


def weight_bytes(weights: float, bits_w: int) -> float:
    """Bytes that `weights` values take when packed at `bits_w` bits."""
    return weights * bits_w / 8


class Cost(Protocol):
    """Cost of a network: a sum over items. An item is anything that gets cheaper with fewer channels or bits."""

    @property
    def unit(self) -> Unit:
        """BOPs or ms."""

    @property
    def constant(self) -> float:
        """Cost of the parts of the network that no decision changes."""

    @property
    def reference(self) -> float:
        """Cost of the dense network in FP32; a reduction is this cost over a plan's cost."""

    def of(self, fraction_in: Any, fraction_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Cost of the items `rows` (indices or a slice), from their kept fractions and bits, all `(..., rows)`."""

    def switches(self, fraction_in: Any) -> Any:
        """Cost `(..., L)` that every item has besides if the item before it has another precision."""


@dataclass(frozen=True, kw_only=True)
class Bops:
    """Bit-Operations as a cost."""

    macs_L: Any
    depthwise_L: Any
    """`(L)`, 1 for depthwise layers, else 0."""
    constant: float
    """BOPs of the layers that stay in float."""
    reference: float
    unit: Unit = "BOPs"

    def of(self, fraction_in: Any, fraction_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """BOPs of the items `rows`: MACs left times bits."""
        macs = kept_macs(self.macs_L[rows], fraction_in, fraction_out, depthwise=self.depthwise_L[rows])
        return bops(macs, bits_w, bits_a)

    def switches(self, fraction_in: Any) -> Any:
        """Nothing: BOPs count multiply-accumulates alone."""
        return 0 * fraction_in
