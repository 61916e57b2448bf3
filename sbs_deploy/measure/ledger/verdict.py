"""One verdict per layer: whether fewer Bit-Operations became less time, and if not, why."""

import math
from dataclasses import dataclass
from typing import Literal

from sbs_train.contract import cost

Verdict = Literal[
    "paid off",
    "2/4 bit executed as 8 bit",
    "partly paid off",
    "reformat or requantization",
    "unaligned channels",
    "depthwise",
    "memory-bound",
    "not faster",
    "left in float",
    "not timed",
]

MEANINGS: dict[Verdict, str] = {
    "paid off": "compute-bound, and faster as its arithmetic allows",
    "2/4 bit executed as 8 bit": "as fast as 8 bits allow; the bits below 8 save storage, not time",
    "partly paid off": "faster, but well below what its arithmetic allows, for no cause that the data shows",
    "reformat or requantization": "a quarter or more of its time goes into converting values",
    "unaligned channels": "its channels are off the multiple that the backend computes in",
    "depthwise": "one input channel an output leaves little to compute on each value loaded",
    "memory-bound": "moving its values takes longer than computing with them",
    "not faster": "no faster than in FP32, for no cause that the data shows",
    "left in float": "neither quantized nor pruned: no gain was predicted",
    "not timed": "no time of its own, here or in dense FP32",
}

CONVERTING: Verdict = "reformat or requantization"
"""The verdict whose fix saves only the conversion of values."""
REALISED: tuple[Verdict, ...] = ("paid off", "2/4 bit executed as 8 bit", "left in float", "not timed")
"""Verdicts of layers with all the speed-up that the backend can give."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds between verdicts."""

    paid_off: float = 1 / 3
    """Share, in logarithms, of the speed-up that arithmetic allows. A register holds 4 times as many 8-bit as 32-bit
    values; processors with integer dot products (VNNI, tensor cores) come near 4x, those without (AVX2, NEON) widen
    first and reach 1.6x to 2x, which is a third to a half of log 4."""
    faster: float = 1.05
    """A smaller gain is within what profilers disturb (they count whole microseconds)."""
    requantization: float = 0.25
    """Share of a layer's time: a fused quantizer is free, and one that is not costs a pass over the tensor, which is
    about a tenth of a 3x3 convolution; a quarter is no accident."""
    ridge_cpu: float = 16.0
    """Multiply-accumulates a byte at which a core's arithmetic and its memory take equally long: about 50 (AVX2) to 400
    (VNNI) billion a second against some 10 to 20 GB/s beyond its caches."""
    ridge_gpu: float = 256.0
    """The ridge of a GPU: an H100 has 990 T multiply-accumulates in INT8 and 3.35 TB/s (295), an RTX 4090 330 T and
    1 TB/s (327), a Jetson Orin 69 T dense and 0.2 TB/s (340)."""


THRESHOLDS = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a layer that decide its verdict."""

    fp32_ms: float | None
    """Milliseconds in dense FP32."""
    ms: float | None
    """Milliseconds in the engine, including conversions of the layer's values."""
    converting_ms: float
    """Part of `ms` in requantization nodes that the engine assigns to this layer."""
    macs_left: float
    """Remaining fraction of the dense multiply-accumulates."""
    planned_bits: tuple[int, int]
    """Bits of weights and activations."""
    executed_bits: tuple[int, int]
    depthwise: bool
    aligned: bool
    """Whether channels, except the network's inputs and outputs, are multiples of the backend's."""
    intensity: float | None
    """Multiply-accumulates per moved byte."""
    on_gpu: bool

    @property
    def attainable(self) -> float:
        """The speed-up that arithmetic allows: fewer products, and more at once as narrower values fit into a register.
        Moving narrower values allows no more. For bits, BOPs promise its square, which no hardware gives."""
        return cost.FP32_BITS / math.sqrt(math.prod(self.executed_bits)) / self.macs_left


def judge(facts: Facts, thresholds: Thresholds = THRESHOLDS) -> Verdict:
    """The first verdict that applies: gains, then causes, those that a user can fix first."""
    if facts.ms is None or facts.fp32_ms is None or not facts.ms or not facts.fp32_ms:
        return "not timed"
    if facts.attainable <= 1:
        return "left in float"
    speedup = facts.fp32_ms / facts.ms
    if math.log(speedup) >= thresholds.paid_off * math.log(facts.attainable):
        narrower = min(facts.planned_bits) < cost.INT8_BITS == max(facts.executed_bits)
        return "2/4 bit executed as 8 bit" if narrower else "paid off"
    if facts.converting_ms >= thresholds.requantization * facts.ms:
        return CONVERTING
    if not facts.aligned:
        return "unaligned channels"
    if facts.depthwise:
        return "depthwise"
    # What waits for memory is no slower for moving fewer bytes: a layer that is slower has a poor kernel.
    ridge = thresholds.ridge_gpu if facts.on_gpu else thresholds.ridge_cpu
    if speedup >= 1 and facts.intensity is not None and facts.intensity < ridge:
        return "memory-bound"
    return "not faster" if speedup < thresholds.faster else "partly paid off"


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """A layer, or several that the engine, or its FP32 control, runs as one."""

    layers: tuple[str, ...]
    kind: str
    bits_w: int
    """Planned weight bits (`bits_a`: input bits); the least of several layers."""
    bits_a: int
    executed_w: int
    """Weight bits in the graph (`executed_a`: input bits); the most of several layers."""
    executed_a: int
    kept_out: int
    size_out: int
    """Output channels before pruning."""
    bops_fp32: float
    """Bit-Operations of one image in the dense float network."""
    bops_paper: float
    bops_deployable: float
    intensity: float | None
    """Multiply-accumulates per moved byte, at the measured batch size."""
    ms: float | None
    """Milliseconds, including conversions of the layer's values."""
    converting_ms: float
    fp32_ms: float | None
    """Milliseconds in dense FP32."""
    attainable: float
    """The speed-up over dense FP32 that arithmetic allows."""
    verdict: Verdict

    @property
    def name(self) -> str:
        """Name for people."""
        return " + ".join(self.layers)

    @property
    def speedup(self) -> float | None:
        """Speed-up over dense FP32; None without both times."""
        return self.fp32_ms / self.ms if self.fp32_ms and self.ms else None
