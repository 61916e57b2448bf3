"""INT8 Q/DQ as FP8 (E4M3), for engines on compute capability 8.9 and newer; networks are not trained in FP8.

Weights keep their scales: codes are whole numbers, exact in E4M3 up to 16 (2- and 4-bit weights), else rounded to four
significant bits. Activations that saturate at the end of the INT8 container (127 steps) saturate at E4M3's end (448).
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sbs_deploy.graph.links import makers_of
from sbs_train.contract.errors import SbsError

E4M3_MAX = 448.0
INT8_MAX = 127.0


def fp8_from_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a symmetric INT8 Q/DQ graph (dialect trt) with FP8 containers.

    Raises:
        SbsError: a container is not int8 with zero-point 0, or codes are clipped as integers.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    makers = makers_of(result)
    containers: set[str] = set()
    full: set[str] = set()
    for node in result.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = tensors.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is None or zero_point.data_type != TensorProto.INT8 or numpy_helper.to_array(zero_point).any():
            raise SbsError(f"node {node.name} is not INT8 with zero-point 0: FP8 is made from the trt dialect")
        maker = makers.get(node.input[0])
        if node.op_type == "DequantizeLinear" and maker is not None and maker.op_type != "QuantizeLinear":
            raise SbsError(f"node {maker.name} works on INT8 codes: FP8 is made from the trt dialect")
        containers.add(zero_point.name)
        if node.input[0] in tensors:
            containers.add(node.input[0])
        elif node.op_type == "QuantizeLinear" and not _saturates_below(node, makers, tensors):
            full.add(node.input[1])
    for name in full:
        scale = np.asarray(numpy_helper.to_array(tensors[name]) * np.float32(INT8_MAX / E4M3_MAX), np.float32)
        tensors[name].CopyFrom(numpy_helper.from_array(scale, name))
    for name in containers:
        codes = numpy_helper.to_array(tensors[name]).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        tensors[name].CopyFrom(numpy_helper.from_array(codes, name))
    del result.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


def _saturates_below(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], tensors: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether a Clip before the quantizer ends below the last INT8 code: its grid has fewer bits."""
    clip = makers.get(node.input[0])
    if clip is None or clip.op_type != "Clip" or len(clip.input) < 3 or clip.input[2] not in tensors:
        return False
    last = numpy_helper.to_array(tensors[clip.input[2]]) / numpy_helper.to_array(tensors[node.input[1]])
    return bool(last < INT8_MAX - 0.5)
