"""How Q/DQ is written for TensorRT and for ONNX Runtime, as data."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The form of Q/DQ that one family of backends needs."""

    name: str
    container: type[np.int8] | type[np.uint8]
    """Type of the activation codes."""
    zero_point_signed: int
    """Zero-point of inputs with negative values; 0 for all other inputs."""
    clip: Literal["float", "integer"]
    """Place of the Clip for a grid smaller than the container: before QuantizeLinear (float), or on its codes."""
    bias: Literal["float", "int32", "rounded"]
    """int32: biases on the accumulator's grid `step_a * scale_O` become int32. A bias between two steps stays in float:
    rounding would change the network, and a runtime rounds where its kernels need it. rounded: all become int32."""

    def zero_point(self, signed: bool) -> int:
        """Zero-point of an input."""
        return self.zero_point_signed if signed else 0

    def container_range(self, signed: bool) -> tuple[int, int]:
        """Smallest and largest code of the container, relative to the zero-point."""
        info = np.iinfo(self.container)
        return int(info.min) - self.zero_point(signed), int(info.max) - self.zero_point(signed)


TRT = Dialect(
    name="trt",
    container=np.int8,
    zero_point_signed=0,  # any other zero-point is refused
    clip="float",  # fuses into the pointwise kernel that writes the codes
    bias="float",  # a bias dequantized from int32 is refused
)
"""Dialect of TensorRT and TensorRT-RTX: symmetric int8, saturation in float, float bias."""
ORT = Dialect(
    name="ort",
    container=np.uint8,
    zero_point_signed=128,  # ONNX Runtime's kernels are fastest for uint8 x int8
    clip="integer",  # a float Clip with another range than Q's would block Conv + Relu + Q -> QLinearConv
    bias="int32",  # the type that integer kernels add
)
"""Dialect of ONNX Runtime on a CPU and of OpenVINO: uint8, saturation on the codes, int32 bias."""
DIALECTS = {dialect.name: dialect for dialect in (TRT, ORT)}
