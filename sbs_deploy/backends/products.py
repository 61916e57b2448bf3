"""8-bit products on x86 processors without VNNI, which add pairs of products in 16 bits with saturation.

Two products of a code a and weights of up to 127 fit if a is at most 129. The nested grids saturate at 127, so inputs
without negative values are safe. With negative values codes reach 255 (the zero-point is 128), and sums can be wrong
by tens of steps. Kernels for uint8 weights multiply in 32 bits: they are exact, but slower.
"""

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto

from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.names import QUANTIZED_OPS
from sbs_deploy.machine import clocks

LARGEST_CODE = (2**15 - 1) // (2 * 127)


def pairs_saturate() -> bool:
    """Whether this is an x86 processor without VNNI."""
    flags = clocks.vector_flags()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def saturating_layers(model: ModelProto) -> list[NodeProto]:
    """Layers of a QDQ graph with int8 weights and uint8 inputs whose codes exceed LARGEST_CODE."""

    makers = makers_of(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in QUANTIZED_OPS or node.op_type == "ConvTranspose":  # which has no integer kernel here
            continue
        data, weight = (makers.get(name) for name in node.input[:2])
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        codes = constants.get(weight.input[0])
        if codes is None or codes.data_type != TensorProto.INT8:
            continue
        if _largest_code(data, makers, constants) > LARGEST_CODE:
            found.append(node)
    return found


def with_exact_products(model: ModelProto) -> ModelProto:
    """An equivalent Q/DQ graph with uint8 weights in saturating layers; `model` itself if no layer saturates."""

    names = {node.input[1] for node in saturating_layers(model)}
    if not names:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    dequantizers = [node for node in changed.graph.node if node.op_type == "DequantizeLinear"]
    weights = {node.input[0]: node.input[1] for node in dequantizers if node.output[0] in names}
    for name, scales in weights.items():
        codes, scale = (onnx.numpy_helper.to_array(tensors[tensor]) for tensor in (name, scales))
        stored = (codes.astype(np.int16) + 128).astype(np.uint8)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(stored, name))
        zero = onnx.numpy_helper.from_array(np.full(scale.shape, 128, np.uint8), f"{name}_zero_point_unsigned")
        changed.graph.initializer.append(zero)
    for node in dequantizers:  # a layer that runs several times has one for every call
        if node.input[0] in weights:
            node.input[2:] = [f"{node.input[0]}_zero_point_unsigned"]
    return changed


def exact_graph(content: bytes) -> bytes:
    """A file's bytes with exact products; unchanged if no layer saturates, or if the file is damaged."""

    try:
        model = onnx.load_model_from_string(content)
    except (ValueError, DecodeError):
        return content
    exact = with_exact_products(model)
    return content if exact is model else exact.SerializeToString()


def _largest_code(dequantize: NodeProto, makers: dict[str, NodeProto], constants: dict[str, TensorProto]) -> int:
    """Largest uint8 code that a DequantizeLinear reads; 0 where its input is int8."""

    zero_point = constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
    if zero_point is not None and zero_point.data_type != onnx.TensorProto.UINT8:
        return 0
    node = makers.get(dequantize.input[0])
    if node is not None and node.op_type == "Clip" and len(node.input) > 2 and node.input[2] in constants:
        return int(onnx.numpy_helper.to_array(constants[node.input[2]]))
    return int(np.iinfo(np.uint8).max)
