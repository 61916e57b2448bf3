"""The float graph in FP16, for the control engines of a strongly typed TensorRT network.

Weights and constants become float16 and one Cast stands at each end, so that inputs and outputs stay float32 and
every engine is fed alike.
"""

from typing import TYPE_CHECKING

import numpy as np

from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGEST = 65504.0
_UNTYPED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "Cast")


def fp16_from_float(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of a float32 model that computes in float16.

    Raises:
        SbsError: a weight is beyond float16's range, or the graph is quantized or casts by itself.
    """
    import onnx_ir as ir

    graph_model = ir.from_proto(model)
    graph = graph_model.graph
    for node in graph:
        if node.op_type in _UNTYPED:
            raise SbsError(f"--engine fp16: node {node.name} is no plain float operator ({node.op_type})")
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == ir.DataType.FLOAT:
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _half(tensor, node.name or ""))
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = _half(value.const_value, name)
            value.dtype = ir.DataType.FLOAT16
    for node in graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = ir.DataType.FLOAT16
    for value in graph.inputs:
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}_to_fp16")
        half = cast.outputs[0]
        half.name, half.dtype, half.shape = f"{value.name}_fp16", ir.DataType.FLOAT16, value.shape
        ir.convenience.replace_all_uses_with(value, half)
        cast.replace_input_with(0, value)
        graph.insert_before(graph[0], cast)
    for index, value in enumerate(list(graph.outputs)):
        name = value.name or f"output{index}"
        value.name = f"{name}_fp16"
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}_to_fp32")
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = name, ir.DataType.FLOAT, value.shape
        graph.append(cast)
        graph.outputs[index] = result
    return ir.to_proto(graph_model)


def _half(tensor: "ir.TensorProtocol", name: str) -> "ir.TensorProtocol":
    import onnx_ir as ir

    values = tensor.numpy()
    if np.abs(values).max(initial=0.0) > LARGEST:
        raise SbsError(f"--engine fp16: {name} holds values beyond ±{LARGEST:g}; build --engine fp32 instead")
    return ir.Tensor(values.astype(np.float16), name=tensor.name)
