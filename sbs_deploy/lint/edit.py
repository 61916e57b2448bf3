"""Changes to a graph that keep its outputs exactly; scales are only clamped where all codes are zero."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sbs_deploy.graph.tensor import BYTES, Array, Quantized, reads
from sbs_deploy.graph.view import Graph

SCALE_MIN = np.float32(1e-8)
"""Smallest scale that every backend takes in float32."""
FP16_SCALE_MIN = np.float16(2**-14)
"""Smallest scale that every backend takes in float16, which has no 1e-8."""


def new_name(graph: Graph, stem: str) -> str:
    """A new name, unused in the graph."""
    taken = {t.name for t in graph.model.graph.initializer} | set(graph.types) | set(graph.makers) | set(graph.readers)
    return next(n for n in (stem, *(f"{stem}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


def add_constant(graph: Graph, stem: str, value: Array) -> str:
    """Add an initializer; returns its name."""
    name = new_name(graph, stem)
    graph.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def replace_constant(graph: Graph, node: NodeProto, index: int, value: Array) -> None:
    """Replace one input of a node by a new constant; other readers keep the old constant."""
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = add_constant(graph, f"{node.input[index] or node.output[0]}_fixed", value)


def redirect(graph: Graph, old: str, new: str) -> None:
    """Replace `old` by `new` in the inputs of all nodes."""
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def insert_after(graph: Graph, node: NodeProto, new: NodeProto) -> None:
    """Put a new node behind another one."""
    nodes = graph.model.graph.node
    nodes.insert(next(i for i, other in enumerate(nodes) if other == node) + 1, new)


def move_codes(graph: Graph, tensor: Quantized, dtype: type[np.generic], by: int) -> None:
    """Add `by` to the codes and the zero-point of an activation, and change their type."""
    assert tensor.zero_point is not None
    zero = (tensor.zero_point.astype(np.int32) + by).astype(dtype)
    for node in (tensor.head, *tensor.dequantizers):
        for held in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(held)
        replace_constant(graph, node, 2, zero)
    if tensor.clip is not None:
        low, high = code_range(graph, tensor)
        for index, code in ((1, low), (2, high)):
            replace_constant(graph, tensor.clip, index, np.asarray(code + by, dtype))


def container(tensor: Quantized) -> type[np.int8] | type[np.uint8]:
    """NumPy's type for codes of 8 bits."""
    return np.uint8 if tensor.code_type == TensorProto.UINT8 else np.int8


def code_range(graph: Graph, tensor: Quantized) -> tuple[int, int]:
    """Smallest and largest code that a tensor can hold, Clip included."""
    info = np.iinfo(container(tensor))
    ends = graph.clip_range(tensor.clip) if tensor.clip is not None else None
    low, high = ends or (-np.inf, np.inf)
    return int(max(info.min, low)), int(min(info.max, high))


def centred_codes(graph: Graph, tensor: Quantized) -> Array | None:
    """Constant codes minus their zero-point, as int8; None if they do not fit or are no initializer."""
    codes = graph.constant(tensor.codes)
    if codes is None or tensor.zero_point is None or tensor.code_type not in BYTES:
        return None
    zero = spread(tensor.zero_point.astype(np.int32), codes, tensor)
    if zero is None:
        return None
    centred = codes.astype(np.int32) - zero
    return centred.astype(np.int8) if not centred.size or (centred.min() >= -128 and centred.max() <= 127) else None


def centre_codes(graph: Graph, tensor: Quantized, centred: Array) -> None:
    """Replace constant codes by `centred` ones, int8 with zero-point 0."""
    assert tensor.zero_point is not None
    replace_constant(graph, tensor.head, 2, np.zeros(tensor.zero_point.shape, np.int8))
    replace_constant(graph, tensor.head, 0, centred)


def spread(values: Array, codes: Array, tensor: Quantized) -> Array | None:
    """Scales or zero-points, reshaped to broadcast over the codes; None if the shapes do not fit."""
    if values.size == 1:
        return values.reshape(())
    if not -codes.ndim <= tensor.axis < codes.ndim:
        return None
    axis = tensor.axis % codes.ndim
    if tensor.block and values.ndim == codes.ndim:
        values = np.take(np.repeat(values, tensor.block, axis), range(codes.shape[axis]), axis)
        return values if values.shape == codes.shape else None
    shape = [1] * codes.ndim
    shape[axis] = -1
    return values.reshape(shape) if values.size == codes.shape[axis] else None


def float_bias(graph: Graph, node: NodeProto, value: Array) -> None:
    """Replace a constant dequantized from int32 by its float value."""
    redirect(graph, node.output[0], add_constant(graph, f"{node.output[0]}_float", value))


def value_of(graph: Graph, tensor: Quantized) -> Array | None:
    """The float value of constant codes with zero-point 0; None if not known."""
    codes = graph.constant(tensor.codes)
    if codes is None or tensor.scale is None or tensor.shifted or tensor.zero_point is None:
        return None
    steps = spread(tensor.scale, codes, tensor)
    return None if steps is None else codes.astype(tensor.scale.dtype) * steps


def positive_scales(graph: Graph, tensor: Quantized, sign: Array) -> None:
    """Make scales of weights positive: 0 becomes the smallest scale with codes 0, negative scales flip the codes."""
    codes, scale = graph.constant(tensor.codes), tensor.scale
    assert codes is not None and scale is not None
    replace_constant(graph, tensor.head, 0, (codes * sign).astype(codes.dtype))
    smallest = SCALE_MIN if SCALE_MIN.astype(scale.dtype) else FP16_SCALE_MIN
    replace_constant(graph, tensor.head, 1, np.where(scale == 0, smallest, np.abs(scale)).astype(scale.dtype))


def wider_scales(graph: Graph, tensor: Quantized, needed: Array) -> None:
    """Raise scales of channels whose codes are all 0 to at least `needed`, which changes no value."""
    assert tensor.scale is not None
    replace_constant(graph, tensor.head, 1, np.maximum(np.abs(tensor.scale), needed).astype(tensor.scale.dtype))


def scalar_scale(graph: Graph, tensor: Quantized) -> None:
    """Turn a list of one scale, and its zero-point, into scalars."""
    assert tensor.scale is not None and tensor.zero_point is not None
    replace_constant(graph, tensor.head, 1, tensor.scale.reshape(()))
    if len(tensor.head.input) > 2 and tensor.head.input[2]:
        replace_constant(graph, tensor.head, 2, tensor.zero_point.reshape(()))


def clip_codes(graph: Graph, tensor: Quantized, clip: NodeProto) -> None:
    """Replace a float Relu or Clip, read by one QuantizeLinear only, by a Clip of its codes.

    The change is exact, since rounding keeps the order of values.
    """
    quantize, ends = tensor.head, graph.clip_range(clip)
    assert ends is not None and tensor.scale is not None and tensor.zero_point is not None
    low, high = code_range(graph, tensor)
    zero = int(tensor.zero_point.reshape(-1)[0])
    with np.errstate(over="ignore"):
        rounded = np.rint(np.asarray(ends, np.float32) / tensor.scale.astype(np.float32).reshape(())) + zero
    bounds = [np.asarray(v, container(tensor)) for v in np.clip(rounded, low, high)]
    quantize.input[0] = clip.input[0]
    if tensor.clip is not None:
        for index, bound in enumerate(bounds, 1):
            replace_constant(graph, tensor.clip, index, bound)
    else:
        codes = new_name(graph, f"{tensor.codes}_clipped")
        names = [add_constant(graph, f"{tensor.codes}_{end}", b) for end, b in zip(("min", "max"), bounds, strict=True)]
        redirect(graph, tensor.codes, codes)
        name = f"{quantize.name}_clip" if quantize.name else ""
        insert_after(graph, quantize, helper.make_node("Clip", [tensor.codes, *names], [codes], name=name))


def sweep(model: ModelProto) -> None:
    """Remove unused nodes and initializers, and inferred shapes and types, which a change may invalidate."""
    graph = model.graph
    live = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if live.intersection(node.output):
            live.update(reads(node))
        else:
            graph.node.remove(node)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in live]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
