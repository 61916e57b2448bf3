"""The dialect of ONNX Runtime on a CPU, which OpenVINO takes as well: uint8, saturation on the codes, int32 bias."""

import numpy as np

from sbs_deploy.export.qdq import Dialect

ORT = Dialect(
    name="ort",
    container=np.uint8,
    zero_point_signed=128,  # its kernels are fastest for uint8 x int8
    clip="integer",  # a float Clip with another range than Q's would block Conv + Relu + Q -> QLinearConv
    bias="int32",  # what its kernels add
)
