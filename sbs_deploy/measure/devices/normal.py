"""Any float ONNX graph as the engines here take it: one float input, and layers called after their weights.

What a graph has besides one image is made from one packed input inside the graph: sliced, reshaped and cast. That is a
copy of the inputs, and nothing is left out of what is measured.
"""

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.version_converter
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from sbs_deploy.export.qdq import OPSET
from sbs_deploy.graph.names import INPUT, LAYER_OPS, OUTPUT, layer_of
from sbs_deploy.graph.tensor import FLOATS
from sbs_deploy.graph.view import Graph
from sbs_train.contract.errors import SbsError

_NUMBERS = (*FLOATS, *(TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL))
_IMAGE_RANK = 4
_OPEN = 0
"""The size of an axis that depends on the batch."""


def normal(name: str, model: onnx.ModelProto, batch: int, image: tuple[int, int, int]) -> onnx.ModelProto:
    """A copy with `input` and `logits` (other outputs stay), whose weights are initializers called `LAYER.weight`.

    Args:
        batch: samples of one inference; an input with a fixed first axis must have as many.
        image: channels, height and width of an image whose size is open.

    Raises:
        SbsError: an input has a type or a shape that nothing can be made up for.
    """
    copy = _at_opset(name, model)
    view = Graph(copy)
    _named_constants(copy, view)
    _named_weights(copy, view)
    shapes = [_shape(name, value, batch, image) for value in view.inputs]
    taken = {*view.types, *view.makers, *view.readers, *view.initializers}
    keep = [value.name for value in view.inputs]
    _rename(copy, _free(taken, [INPUT, OUTPUT], {*keep[:1], *(o.name for o in copy.graph.output[:1])}))
    inputs = [v for v in copy.graph.input if v.name not in view.initializers]
    one = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.FLOAT
    if one and len(shapes[0]) == _IMAGE_RANK:
        _rename(copy, {inputs[0].name: INPUT})
        first = [_image(shapes[0])]
    else:
        first = [_packed(copy, inputs, shapes)]
    del copy.graph.input[:]
    copy.graph.input.extend(first)
    _rename_output(copy)
    del copy.graph.value_info[:]
    return copy


def _at_opset(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the opset that Q/DQ is written in."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset == OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise SbsError(f"{name} is of opset {opset} and cannot be converted; export it at opset {OPSET}") from error


def _named_constants(model: onnx.ModelProto, view: Graph) -> None:
    """Constant nodes become initializers."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        value = view.constant(node.output[0])
        if value is not None:
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            model.graph.node.remove(node)


def _named_weights(model: onnx.ModelProto, view: Graph) -> None:
    """Weights and biases of layers become initializers of their own; a layer without a name gets its node's."""
    held = {tensor.name for tensor in model.graph.initializer}
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if node.op_type not in LAYER_OPS or len(node.input) < 2 or (value := view.constant(node.input[1])) is None:
            continue
        weights = node.input[1]
        bare = node.op_type == "Gemm" and not _transposed(node)
        if weights not in held or weights in used or layer_of(weights) is None or bare:
            stem = layer_of(weights) or node.name or node.output[0] or f"layer_{index}"
            weights = next(f"{stem}{more}.weight" for more in _suffixes() if f"{stem}{more}.weight" not in held)
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(value.T if bare else value), weights)
            )
            node.input[1] = weights
            held.add(weights)
            if bare:
                _transpose(node)
        used.add(weights)
        bias = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and node.input[2] not in held:
            model.graph.initializer.append(numpy_helper.from_array(bias, node.input[2]))
            held.add(node.input[2])


def _transposed(node: NodeProto) -> bool:
    return any(held.name == "transB" and held.i for held in node.attribute)


def _transpose(node: NodeProto) -> None:
    for held in [held for held in node.attribute if held.name == "transB"]:
        node.attribute.remove(held)
    node.attribute.append(helper.make_attribute("transB", 1))


def _suffixes() -> Iterable[str]:
    yield ""
    yield from (f"_{index}" for index in range(1, 10**6))


def _shape(name: str, value: ValueInfoProto, batch: int, image: tuple[int, int, int]) -> list[int]:
    """Sizes of an input, 0 for an open batch."""
    tensor = value.type.tensor_type
    if tensor.elem_type not in _NUMBERS or not tensor.HasField("shape"):
        kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "no tensor"
        raise SbsError(
            f"{name}: no values can be made up for input {value.name} ({kind}); export it with a float input"
        )
    sizes = [axis.dim_value for axis in tensor.shape.dim]
    if len(sizes) == _IMAGE_RANK and tensor.elem_type in FLOATS:
        sizes[1:] = [size or given for size, given in zip(sizes[1:], image, strict=True)]
    if not all(size > 0 for size in sizes[1:]):
        open_axes = ", ".join(str(index) for index, size in enumerate(sizes) if index and size <= 0)
        raise SbsError(
            f"{name}: axis {open_axes} of input {value.name} is open; export it with all axes fixed but the batch"
        )
    if sizes and sizes[0] not in (_OPEN, batch):
        raise SbsError(
            f"{name}: the first axis of input {value.name} is fixed at {sizes[0]}; give --batch {sizes[0]} if it is "
            f"the batch, or export the network with an open batch axis in front"
        )
    return sizes


def _free(taken: set[str], wanted: list[str], allowed: set[str]) -> dict[str, str]:
    """New names for tensors inside a graph that are called as its ends are to be."""
    return {
        name: next(f"{name}{more}" for more in _suffixes() if more and f"{name}{more}" not in taken)
        for name in wanted
        if name in taken and name not in allowed
    }


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give tensors other names wherever they stand, bodies of nodes included."""
    names = {old: new for old, new in names.items() if old != new}
    if names:
        _rename_in(model.graph, names)


def _rename_in(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for tensor in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                ends[index] = names.get(name, name)
        for held in node.attribute:
            for body in (held.g, *held.graphs):
                _rename_in(body, names)


def _image(sizes: list[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [sizes[0] or "batch", *sizes[1:]])


def _packed(model: onnx.ModelProto, inputs: list[ValueInfoProto], shapes: list[list[int]]) -> ValueInfoProto:
    """One input (N, 1, 1, values of a sample), and the nodes that make the graph's inputs of it."""
    batch = next((sizes[0] for sizes in shapes if sizes and sizes[0]), _OPEN)
    nodes: list[NodeProto] = []
    _rename(model, {value.name: f"{INPUT}_{index}" for index, value in enumerate(inputs)})
    begin = 0

    def constant(stem: str, values: list[int]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{INPUT}.{stem}"))
        return f"{INPUT}.{stem}"

    for index, (value, sizes) in enumerate(zip(inputs, shapes, strict=True)):
        end = begin + int(np.prod(sizes[1:], dtype=np.int64))
        parts = [constant(f"{index}.{what}", ends) for what, ends in (("from", [begin]), ("to", [end]), ("axis", [3]))]
        nodes.append(helper.make_node("Slice", [INPUT, *parts], [f"{INPUT}.{index}.part"], f"{INPUT}.{index}.slice"))
        rows = [0, *sizes[1:]] if sizes else []  # 0: as many as before
        part = f"{INPUT}.{index}.part"
        if not sizes:
            first = [constant(f"{index}.{what}", [at]) for what, at in (("first", 0), ("second", 1), ("rows", 0))]
            nodes.append(helper.make_node("Slice", [part, *first], [f"{part}_0"], f"{INPUT}.{index}.row"))
            part = f"{part}_0"
        to = value.type.tensor_type.elem_type
        made = f"{INPUT}_{index}"
        reshaped = made if to == TensorProto.FLOAT else f"{made}.float"
        shape = constant(f"{index}.shape", rows)
        nodes.append(helper.make_node("Reshape", [part, shape], [reshaped], f"{INPUT}.{index}.reshape"))
        if to != TensorProto.FLOAT:
            # Numbers of words and places are not negative.
            nodes.append(helper.make_node("Abs", [reshaped], [f"{made}.abs"], f"{INPUT}.{index}.abs"))
            nodes.append(helper.make_node("Cast", [f"{made}.abs"], [made], f"{INPUT}.{index}.cast", to=to))
        begin = end
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    return helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch or "batch", 1, 1, begin])


def _rename_output(model: onnx.ModelProto) -> None:
    """The first float output is called `logits`, or a cast of the first where none is float."""
    outputs = list(model.graph.output)
    chosen = next((o for o in outputs if o.type.tensor_type.elem_type == TensorProto.FLOAT), None)
    if chosen is not None and chosen.name != OUTPUT:
        direct = chosen.name not in {INPUT, *(tensor.name for tensor in model.graph.initializer)}
        if direct:
            _rename(model, {chosen.name: OUTPUT})
            return
    if chosen is None or chosen.name != OUTPUT:
        first = chosen or outputs[0]
        model.graph.node.append(helper.make_node("Cast", [first.name], [OUTPUT], OUTPUT, to=TensorProto.FLOAT))
        made = ValueInfoProto()
        made.CopyFrom(first)
        made.name = OUTPUT
        made.type.tensor_type.elem_type = TensorProto.FLOAT
        model.graph.output.insert(0, made)
