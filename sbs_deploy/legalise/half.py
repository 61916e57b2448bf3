"""Convert a float32 graph, quantized or not, to float16, as strongly typed networks compute in the file's types.

Scales of Q/DQ become float16 as well, since a node's output has the type of its scale (ONNX, DequantizeLinear-21). A
layer with constants beyond float16 (a weight above 65504, a scale so small that it would lose digits) stays in float32
between casts, and so do writers and readers of tensors that float16 cannot hold (found by ranges.py). Inputs and
outputs stay float32, so that all engines have equal inputs.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from sbs_deploy.backends.spec import DEFAULT_BACKEND
from sbs_train.contract.errors import SbsError

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""The smallest float16 with all its digits."""
LOST = 2.0**-9
"""Largest relative root mean square error of weights in float16: four times the largest at full digits."""
_FACTORS = ("Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul")
"""Operators whose relative error is that of a constant among their first two inputs. In other operators a small
constant is an epsilon or a bias, whose absolute error counts."""
_Constant = tuple[npt.NDArray[Any], bool, npt.NDArray[np.bool_] | None]
"""(values, factor: relative error counts, used: for scales, which channels have codes, else None)."""
_FOLLOWERS = ("QuantizeLinear", "DequantizeLinear", "Clip")
"""Nodes that take the type of their readers."""
_ALWAYS_FLOAT32 = {("Resize", 1), ("Resize", 2)}
"""(operator, input index) that ONNX needs in float32 for data of any type."""


def half_precision(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 model in float16; nodes that float16 cannot compute stay in float32.

    Args:
        keep: tensors that float16 cannot hold.

    Raises:
        SbsError: the graph has operators without float16.
    """

    typed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    wide = _wide_nodes(typed.graph, keep)
    _convert(typed.graph, wide)
    proto = ir.to_proto(typed)
    del proto.graph.value_info[:]  # has the old types
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SbsError(f"this graph cannot be written in float16 ({reason}); use {DEFAULT_BACKEND.flags}") from error
    return proto


def float32_layers(model: onnx.ModelProto, keep: Collection[str] = ()) -> list[str]:
    """Names of the nodes that `half_precision` leaves in float32, in the order of the graph."""

    graph = ir.from_proto(model).graph
    wide = _wide_nodes(graph, keep)
    return [node.name or "" for node in graph if node in wide and node.op_type not in _FOLLOWERS]


def _wide_nodes(graph: ir.Graph, keep: Collection[str]) -> set[ir.Node]:
    """Nodes that read or write tensors beyond float16, and Q/DQ nodes that feed only such nodes."""
    held = set(keep)
    wide = {node for node in graph if node.op_type not in _FOLLOWERS and not all(map(_fits, _constants(node)))}
    wide |= {
        node for node in graph if held.intersection(value.name for value in (*node.inputs, *node.outputs) if value)
    }
    for node in reversed(list(graph)):
        readers = [use.node for output in node.outputs for use in output.uses()]
        if node.op_type in _FOLLOWERS and readers and wide.issuperset(readers):
            wide.add(node)
    return wide


def _constants(node: ir.Node) -> list[_Constant]:
    """All float32 constants that a node reads."""
    found: list[_Constant] = []
    for index, value in enumerate(node.inputs):
        if value is None or (node.op_type, index) in _ALWAYS_FLOAT32:
            continue
        if value.const_value is not None:
            found.append((value.const_value.numpy(), node.op_type in _FACTORS and index < 2, None))
        elif (maker := value.producer()) is not None and maker.op_type == "DequantizeLinear":
            data, scale = maker.inputs[:2]
            assert data is not None and scale is not None
            if scale.const_value is not None:
                codes = None if data.const_value is None else data.const_value.numpy()
                found.append((scale.const_value.numpy(), True, _used(codes, maker.attributes.get_int("axis", 1))))
    return [constant for constant in found if constant[0].dtype == np.float32]


def _used(codes: npt.NDArray[Any] | None, axis: int) -> npt.NDArray[np.bool_]:
    """Which channels along `axis` have a non-zero code: other channels are zero at any scale."""
    if codes is None or not codes.ndim:
        return np.ones(1, bool)
    axis %= codes.ndim
    return np.asarray(codes.astype(bool).any(tuple(i for i in range(codes.ndim) if i != axis)))


def _fits(constant: _Constant) -> bool:
    values, factor, used = constant
    finite = values[np.isfinite(values)]
    if float(np.abs(finite).max(initial=0.0)) > LARGEST:
        return False
    if used is None:
        # Over the whole tensor: a small value among large ones does not matter.
        error, size = finite.astype(np.float16).astype(np.float64) - finite, finite.astype(np.float64)
        return not factor or bool(np.square(error).sum() <= LOST**2 * np.square(size).sum())
    # A single scale belongs to all channels.
    small = values.reshape(-1) < SMALLEST_SCALE
    return not bool(np.any(small & used if small.size == used.size else small & used.any()))


def _convert(graph: ir.Graph, wide: set[ir.Node]) -> None:

    def type_of(node: ir.Node | None) -> ir.DataType:
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
                    node.replace_input_with(index, _cast(graph, value, wanted, casts))
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
    graph: ir.Graph, value: ir.Value, to: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
) -> ir.Value:
    """`value` in another type; `casts` shares a cast among readers."""

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
    graph: ir.Graph, value: ir.Value, reader: ir.Node, index: int, halves: "dict[str, ir.Value]"
) -> ir.Value:

    name = value.name or ""
    if name not in halves:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        scale = reader.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1
        # The scale of a channel without codes may be anything but 0.
        tensor = ir.Tensor(_half(np.maximum(numbers, SMALLEST_SCALE) if scale else numbers), name=f"{name}_fp16")
        half = ir.Value(
            name=tensor.name, type=ir.TensorType(ir.DataType.FLOAT16), shape=tensor.shape, const_value=tensor
        )
        graph.register_initializer(half)
        halves[name] = half
    return halves[name]


def _convert_attributes(node: ir.Node) -> None:
    """Convert types in attributes: of a Cast to float, of constants."""

    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
            tensor = attribute.as_tensor()
            node.attributes[attribute.name] = ir.AttrTensor(
                attribute.name, ir.Tensor(_half(tensor.numpy()), name=tensor.name)
            )
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = attribute.as_float() if attribute.name == "value_float" else attribute.as_floats()
            del node.attributes[attribute.name]
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(_half(np.asarray(value, np.float32))))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))


def _half(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Values in float16: non-zero values stay non-zero (an epsilon in a division), finite values finite."""
    bounded = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values).astype(np.float16)
    lost = (bounded == 0) & (values != 0)
    return np.where(lost, np.copysign(np.float16(SMALLEST_SCALE), values), bounded).astype(np.float16)
