"""What a plan costs: multiply-accumulates, Bit-Operations and bytes. Pure arithmetic, no framework.

    BOPs of a layer = MACs(kept in, kept out) * weight bits * activation bits

(Liu et al., TPAMI 2023, section 3.4; normalisation and activations do not count.) The formulas use only
operators, so they take floats, NumPy arrays or torch tensors alike: the search differentiates the very
arithmetic that the report prints.
"""

from typing import Any

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
