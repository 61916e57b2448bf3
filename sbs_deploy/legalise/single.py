"""A graph in float32, with and without rounding to float16 at every node.

Explicit rounding is needed because a CPU computes float16 in float32 and drops casts between nodes.
"""

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from sbs_deploy.legalise.half import half_precision

DROPPED_BITS = 13
"""Significant bits that float32 has and float16 and TF32 (eleven bits each) lack."""


def precisions(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph in float32, and in float32 with all outputs of nodes rounded to float16's significant bits.

    In the second graph, constants of a graph all in float32 are rounded as well: a GPU computes convolutions in TF32,
    which rounds their inputs to as many bits. Constants in float16 are equal in both graphs.
    """
    exact = single_precision(model)
    return exact, with_rounding(exact if has_half(model) else single_precision(half_precision(model)))


def with_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph whose nodes write eleven significant bits (Veltkamp's splitting, exact in float32).

    Outputs of DequantizeLinear are not rounded: integer kernels compute with codes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    values = (*copy.graph.value_info, *copy.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    factor = "rounding/factor"
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in floats and node.op_type not in ("DequantizeLinear", "Constant"):
                exact, scaled, rest = (f"{name}/{part}" for part in ("exact", "scaled", "rest"))
                node.output[index] = exact
                nodes.append(helper.make_node("Mul", [exact, factor], [scaled]))
                nodes.append(helper.make_node("Sub", [exact, scaled], [rest]))
                nodes.append(helper.make_node("Add", [scaled, rest], [name]))
    copy.graph.initializer.append(numpy_helper.from_array(np.asarray(2**DROPPED_BITS + 1, np.float32), factor))
    rounded = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(rounded)
    return copy


def with_float16_range(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with float16 nodes, in float32, with outputs of these nodes limited to float16's digits and range.

    Too large values become infinite (times 2^112 and back), too small values a multiple of 2^-24 or zero.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    halves = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    single = single_precision(model)
    # Infinity minus infinity is NaN: too large values are bounded first, and become infinite at the end.
    values = {
        "bias": 0.75,
        "least": -(2.0**17),
        "most": 2.0**17,
        "split": 2.0**DROPPED_BITS + 1,
        "up": 2.0**112,
        "down": 2.0**-112,
    }
    nodes = []
    for node in single.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves and node.op_type not in ("DequantizeLinear", "Constant"):
                node.output[index] = f"{name}/exact"
                bounded = [f"{name}/exact", "float16/least", "float16/most"]
                nodes.append(helper.make_node("Clip", bounded, [f"{name}/bounded"]))
                steps = [
                    ("Add", "bounded", "float16/bias", "lifted"),
                    ("Sub", "lifted", "float16/bias", "even"),
                    ("Mul", "even", "float16/split", "scaled"),
                ]
                for kind, left, right, result in steps:
                    nodes.append(helper.make_node(kind, [f"{name}/{left}", right], [f"{name}/{result}"]))
                nodes.append(helper.make_node("Sub", [f"{name}/even", f"{name}/scaled"], [f"{name}/rest"]))
                nodes.append(helper.make_node("Add", [f"{name}/scaled", f"{name}/rest"], [f"{name}/digits"]))
                nodes.append(helper.make_node("Mul", [f"{name}/digits", "float16/up"], [f"{name}/large"]))
                nodes.append(helper.make_node("Mul", [f"{name}/large", "float16/down"], [name]))
    single.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), f"float16/{name}") for name, value in values.items()
    )
    ranged = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del single.graph.node[:]
    single.graph.node.extend(ranged)
    return single


def has_half(model: onnx.ModelProto) -> bool:
    """Whether a graph has float16 tensors."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer) or any(
        attribute.name == "to" and attribute.i == TensorProto.FLOAT16
        for node in model.graph.node
        for attribute in node.attribute
    )


def single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float32 in place of float16; constants keep their float16 values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        _widen(tensor)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.CopyFrom(helper.make_attribute("to", TensorProto.FLOAT))
    del copy.graph.value_info[:]  # has the old types
    return copy


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
