"""Graphs that are wrong in one place: each takes a quantized or float graph and says what became of it."""

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

Mutation = Callable[[random.Random, onnx.ModelProto], str | None]
"""Changes the graph in place; the node that is wrong now, or None where the graph has no such place."""


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _set(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value).astype(old.dtype).reshape(old.shape), tensor.name))


def _bypass(model: onnx.ModelProto, node: onnx.NodeProto, tensor: str) -> str:
    """Everything that reads the node reads the tensor instead."""
    name = node.name or node.output[0]
    output = node.output[0]
    for reader in model.graph.node:
        reader.input[:] = [tensor if read == output else read for read in reader.input]
    model.graph.node.remove(node)
    return name


def lost_shortcut(random: random.Random, model: onnx.ModelProto) -> str | None:
    constants = _constants(model)
    adds = [n for n in model.graph.node if n.op_type == "Add" and not any(i in constants for i in n.input)]
    if not adds:
        return None
    node = random.choice(adds)
    return _bypass(model, node, node.input[random.randrange(2)])


def silent_shortcut(random: random.Random, model: onnx.ModelProto) -> str | None:
    """The addition is there, and adds nothing."""
    constants = _constants(model)
    adds = [n for n in model.graph.node if n.op_type == "Add" and not any(i in constants for i in n.input)]
    if not adds:
        return None
    node, side = random.choice(adds), random.randrange(2)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    mul = onnx.helper.make_node("Mul", [node.input[side], "nothing"], [f"{node.output[0]}/silent"], "silent")
    node.input[side] = mul.output[0]
    index = list(model.graph.node).index(node)
    model.graph.node.insert(index, mul)
    return node.name


def _scaled(random: random.Random, model: onnx.ModelProto, op_type: str, weights: bool, channel: bool) -> str | None:
    constants = _constants(model)
    nodes = [n for n in model.graph.node if n.op_type == op_type and (n.input[0] in constants) == weights]
    nodes = [n for n in nodes if n.input[1] in constants and not n.input[0].endswith("bias_codes")]
    if not nodes:
        return None
    node = random.choice(nodes)
    old = constants[node.input[1]]
    scale = numpy_helper.to_array(old).copy()
    if channel:
        codes = numpy_helper.to_array(constants[node.input[0]])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        alive = np.flatnonzero(codes.any(tuple(i for i in range(codes.ndim) if i != axis)))
        large = alive[scale[alive] >= np.median(scale[alive])]
        scale[random.choice(large.tolist())] *= 2
    else:
        scale = scale * random.choice((0.5, 2))
    new = numpy_helper.from_array(scale.astype(np.float32), f"{old.name}/wrong")
    model.graph.initializer.append(new)
    node.input[1] = new.name
    return node.name


def scale_of_a_quantizer(random: random.Random, model: onnx.ModelProto) -> str | None:
    return _scaled(random, model, "QuantizeLinear", False, False)


def scale_behind_a_quantizer(random: random.Random, model: onnx.ModelProto) -> str | None:
    return _scaled(random, model, "DequantizeLinear", False, False)


def scale_of_weights(random: random.Random, model: onnx.ModelProto) -> str | None:
    return _scaled(random, model, "DequantizeLinear", True, False)


def scale_of_a_channel(random: random.Random, model: onnx.ModelProto) -> str | None:
    return _scaled(random, model, "DequantizeLinear", True, True)


def both_scales(random: random.Random, model: onnx.ModelProto) -> str | None:
    """Twice as large throughout: the grid ends elsewhere."""
    constants = _constants(model)
    nodes = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    if not nodes:
        return None
    node = random.choice(nodes)
    tensor = constants[node.input[1]]
    _set(tensor, numpy_helper.to_array(tensor) * np.float32(2))
    return node.name


def zero_point(random: random.Random, model: onnx.ModelProto) -> str | None:
    constants = _constants(model)
    nodes = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2]
    if not nodes:
        return None
    node = random.choice(nodes)
    tensor = constants[node.input[2]]
    _set(tensor, numpy_helper.to_array(tensor).astype(np.int64) + 1)
    return node.name


def _biased(random: random.Random, model: onnx.ModelProto) -> tuple[onnx.NodeProto, str] | None:
    """A layer and the name of the constant its bias comes from."""
    constants, makers = _constants(model), {o: n for n in model.graph.node for o in n.output}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            bias = node.input[2]
            bias = makers[bias].input[0] if bias in makers else bias
            if numpy_helper.to_array(constants[bias]).any():
                found.append((node, bias))
    return random.choice(found) if found else None


def dropped_bias(random: random.Random, model: onnx.ModelProto) -> str | None:
    place = _biased(random, model)
    if place is None:
        return None
    node = place[0]
    del node.input[2]
    return node.name


def swapped_biases(random: random.Random, model: onnx.ModelProto) -> str | None:
    place = _biased(random, model)
    if place is None:
        return None
    tensor = _constants(model)[place[1]]
    _set(tensor, np.roll(numpy_helper.to_array(tensor), 1))
    return place[0].name


def swapped_channels(random: random.Random, model: onnx.ModelProto) -> str | None:
    """The input channels of one layer in another order."""
    constants, makers = _constants(model), {o: n for n in model.graph.node for o in n.output}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = node.input[1]
            weight = makers[weight].input[0] if weight in makers else weight
            if weight in constants and constants[weight].dims[1] > 1:
                found.append((node, weight))
    if not found:
        return None
    node, weight = random.choice(found)
    _set(constants[weight], np.roll(numpy_helper.to_array(constants[weight]), 1, axis=1))
    return node.name


def missing_clip(random: random.Random, model: onnx.ModelProto) -> str | None:
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    if not clips:
        return None
    node = random.choice(clips)
    return _bypass(model, node, node.input[0])


def missing_relu(random: random.Random, model: onnx.ModelProto) -> str | None:
    relus = [n for n in model.graph.node if n.op_type == "Relu"]
    if not relus:
        return None
    node = random.choice(relus)
    return _bypass(model, node, node.input[0])


def wrong_padding(random: random.Random, model: onnx.ModelProto) -> str | None:
    """All of it on one side: the image moves by a pixel."""
    padded = [
        (node, attribute)
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "pads" and any(attribute.ints)
    ]
    if not padded:
        return None
    node, attribute = random.choice(padded)
    top, left, bottom, right = attribute.ints
    attribute.ints[:] = [0, 0, top + bottom, left + right]
    return node.name


def another_input(random: random.Random, model: onnx.ModelProto) -> str | None:
    """A layer reads what another one of the same shape reads."""
    shapes: dict[tuple[int, ...], list[onnx.NodeProto]] = {}
    typed = onnx.shape_inference.infer_shapes(model)
    known = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in typed.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in known:
            shapes.setdefault(known[node.input[0]], []).append(node)
    pairs = [(a, b) for group in shapes.values() for i, a in enumerate(group) for b in group[i + 1 :]]
    pairs = [(a, b) for a, b in pairs if a.input[0] != b.input[0]]
    if not pairs:
        return None
    early, late = random.choice(pairs)
    late.input[0] = early.input[0]
    return late.name


ALL: tuple[Mutation, ...] = (
    lost_shortcut,
    silent_shortcut,
    scale_of_a_quantizer,
    scale_behind_a_quantizer,
    scale_of_weights,
    scale_of_a_channel,
    both_scales,
    zero_point,
    dropped_bias,
    swapped_biases,
    swapped_channels,
    missing_clip,
    missing_relu,
    wrong_padding,
    another_input,
)
FLOAT: tuple[Mutation, ...] = (silent_shortcut, dropped_bias, swapped_biases, missing_relu, wrong_padding)
"""Those that a float graph can have."""
