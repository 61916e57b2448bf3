"""The dialect of TensorRT and TensorRT-RTX: symmetric int8, saturation in float, float bias."""

import numpy as np

from sbs_deploy.export.qdq import Dialect

TRT = Dialect(
    name="trt",
    container=np.int8,
    zero_point_signed=0,  # any other zero-point is refused
    clip="float",  # fuses into the pointwise kernel that writes the codes
    bias="float",  # a bias dequantized from int32 is refused
)
