"""A float32 graph, quantized or not, in float16: TensorRT's networks are strongly typed, so the file has to say it.

Scales of Q/DQ become float16 as well, for a node's output has the type of its scale (ONNX, DequantizeLinear-21). A
layer that float16 cannot hold (a weight beyond 65504, a scale so small that it would lose digits) stays in float32 with
casts around it. Inputs and outputs stay float32, so that every engine is fed alike.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""The smallest float16 with all its digits."""
_LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_Constant = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]
"""(values, codes): codes where the values are their scales, None where they are weights themselves."""
_FOLLOWERS = ("QuantizeLinear", "DequantizeLinear", "Clip")
"""Nodes with the type of what reads them."""
_ALWAYS_FLOAT32 = {("Resize", 1), ("Resize", 2)}
"""(operator, input) that ONNX wants in float32 whatever the type of the data."""


def half_precision(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of a float32 model that computes in float16; layers that cannot are left in float32."""
    import onnx
    import onnx_ir as ir

    typed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    wide = _wide_nodes(typed.graph)
    _convert(typed.graph, wide)
    proto = ir.to_proto(typed)
    del proto.graph.value_info[:]  # of the old types
    onnx.checker.check_model(proto, full_check=True)
    return proto


def float32_layers(model: "onnx.ModelProto") -> list[str]:
    """Names of the layers that `half_precision` leaves in float32."""
    import onnx_ir as ir

    return [node.name or "" for node in _wide_nodes(ir.from_proto(model).graph) if node.op_type in _LAYERS]


def _wide_nodes(graph: "ir.Graph") -> "set[ir.Node]":
    """Layers that float16 cannot hold, and what feeds nothing but them with codes."""
    wide = {node for node in graph if node.op_type in _LAYERS and not all(map(_fits, _constants(node)))}
    for node in reversed(list(graph)):
        readers = [use.node for output in node.outputs for use in output.uses()]
        if node.op_type in _FOLLOWERS and readers and wide.issuperset(readers):
            wide.add(node)
    return wide


def _constants(node: "ir.Node") -> list[_Constant]:
    """Everything constant that a layer reads."""
    found: list[_Constant] = []
    for value in node.inputs:
        if value is None:
            continue
        if value.const_value is not None:
            found.append((value.const_value.numpy(), None))
        elif (maker := value.producer()) is not None and maker.op_type == "DequantizeLinear":
            data, scale = maker.inputs[:2]
            assert data is not None and scale is not None and scale.const_value is not None
            codes = data.const_value.numpy() if data.const_value is not None else None
            found.append((scale.const_value.numpy(), np.ones(1) if codes is None else codes))
    return found


def _fits(constant: _Constant) -> bool:
    values, codes = constant
    if values.dtype != np.float32:
        return True
    if float(np.abs(values).max(initial=0.0)) > LARGEST:
        return False
    if codes is None:
        return True
    small = values < SMALLEST_SCALE
    # A channel without codes is zero at any scale.
    used = _used_channels(codes, len(values)) if values.ndim and len(values) > 1 else np.any(codes)
    return not bool(np.any(small & used))


def _used_channels(codes: npt.NDArray[Any], channels: int) -> npt.NDArray[np.bool_]:
    """Which output channels have a code other than 0; of a MatMul they are the last axis."""
    if codes.shape[0] == channels:
        return np.asarray(codes.reshape(channels, -1).any(1))
    return np.asarray(codes.reshape(-1, channels).any(0))


def _convert(graph: "ir.Graph", wide: "set[ir.Node]") -> None:
    import onnx_ir as ir

    def type_of(node: "ir.Node | None") -> "ir.DataType":
        return ir.DataType.FLOAT if node is None or node in wide else ir.DataType.FLOAT16

    computed = {
        value
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs))
        if value.dtype == ir.DataType.FLOAT
    }
    made = {value: type_of(value.producer()) for value in computed}
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    halves: dict[str, ir.Value] = {}
    for node in list(graph):
        wanted = type_of(node)
        for index, value in enumerate(node.inputs):
            if value is None or (node.op_type, index) in _ALWAYS_FLOAT32:
                continue
            if value in made:
                if made[value] != wanted:
                    node.replace_input_with(index, _cast(graph, value, wanted, node, casts))
            elif value.const_value is not None and value.dtype == ir.DataType.FLOAT and wanted != ir.DataType.FLOAT:
                node.replace_input_with(index, _half_constant(graph, value, node, index, halves))
        if wanted != ir.DataType.FLOAT:
            _convert_attributes(node)
    for value in computed:
        value.dtype = made[value]
    for index, value in enumerate(list(graph.outputs)):
        if made.get(value) == ir.DataType.FLOAT16:
            name, value.name = value.name, f"{value.name}_fp16"
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}_to_fp32")
            result = cast.outputs[0]
            result.name, result.dtype, result.shape = name, ir.DataType.FLOAT, value.shape
            graph.append(cast)
            graph.outputs[index] = result
    for name, initializer in list(graph.initializers.items()):
        if not initializer.uses():
            del graph.initializers[name]


def _cast(
    graph: "ir.Graph",
    value: "ir.Value",
    to: "ir.DataType",
    before: "ir.Node",
    casts: "dict[tuple[ir.Value, ir.DataType], ir.Value]",
) -> "ir.Value":
    """`value` in another type; those that want it in one type share the cast."""
    import onnx_ir as ir

    if (value, to) not in casts:
        suffix = "fp16" if to == ir.DataType.FLOAT16 else "fp32"
        cast = ir.node("Cast", [value], {"to": to}, name=f"{value.name}_to_{suffix}")
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = f"{value.name}_{suffix}", to, value.shape
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)
        casts[value, to] = result
    return casts[value, to]


def _half_constant(
    graph: "ir.Graph", value: "ir.Value", reader: "ir.Node", index: int, halves: "dict[str, ir.Value]"
) -> "ir.Value":
    import onnx_ir as ir

    name = value.name or ""
    if name not in halves:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        scale = reader.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1
        # The scale of a channel without codes may be anything but 0.
        numbers = np.maximum(numbers, SMALLEST_SCALE) if scale else np.clip(numbers, -LARGEST, LARGEST)
        tensor = ir.Tensor(numbers.astype(np.float16), name=f"{name}_fp16")
        half = ir.Value(
            name=tensor.name, type=ir.TensorType(ir.DataType.FLOAT16), shape=tensor.shape, const_value=tensor
        )
        graph.register_initializer(half)
        halves[name] = half
    return halves[name]


def _convert_attributes(node: "ir.Node") -> None:
    """Types that stand in attributes: of a Cast to float, of constants."""
    import onnx_ir as ir

    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
            tensor = attribute.as_tensor()
            numbers = np.clip(tensor.numpy(), -LARGEST, LARGEST).astype(np.float16)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.Tensor(numbers, name=tensor.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
