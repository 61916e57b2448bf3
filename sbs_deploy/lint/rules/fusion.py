"""Rules for convolutions that stay in float with ort files, and for repeated quantization.

Conv, Relu or Clip, and QuantizeLinear become a QLinearConv only if the activation passes the whole range of the codes,
and nothing reads the result in float.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import NodeProto, TensorProto

from sbs_deploy.graph.tensor import CLIPS, QUANTIZE, Quantized
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.edit import clip_codes, move_codes, redirect
from sbs_deploy.lint.finding import Hit, Rule

CLIP_OPSET = 12
"""First opset in which Clip takes integers."""
UINT8_OFFSET = 128
"""Offset of codes from int8 to uint8."""
_TAKES_CODES = ("AveragePool", "GlobalAveragePool", "ReduceMean", "Concat", "Resize", "Split", "Slice", "Pad")
"""Operators that Q/DQ can be moved before."""


def find_blocked(graph: Graph) -> Iterator[Hit]:
    """Activations between a quantized convolution and its QuantizeLinear that cut off what the codes could hold."""
    for layer in graph.layers:
        if layer.node.op_type != "Conv" or not layer.quantized:
            continue
        behind = graph.readers.get(layer.node.output[0], [])
        clip = behind[0] if len(behind) == 1 and behind[0].op_type in CLIPS else None
        if clip is None:
            continue
        readers = graph.readers.get(clip.output[0], [])
        tensor = graph.written_by(readers[0]) if len(readers) == 1 else None
        if tensor is not None and (ends := graph.cut(clip, tensor)):
            (low, high), (least, most) = ends
            detail = f"passes {low:g} to {high:g}, codes hold {least:g} to {most:g}"
            fix = partial(clip_codes, graph, tensor, clip) if _can_clip_codes(graph, tensor) else None
            yield Hit(node=graph.label(clip), detail=detail, fix=fix)


def find_float_outputs(graph: Graph) -> Iterator[Hit]:
    """Quantized convolutions whose result is read in float (except by Add), or quantized in several ways."""
    for layer in graph.layers:
        if layer.node.op_type != "Conv" or not layer.quantized:
            continue
        readers = _behind(graph, layer.node)
        floats = [node for node in readers if node.op_type in _TAKES_CODES]
        if floats:
            yield Hit(node=graph.label(layer.node), detail=f"read by {graph.label(floats[0])}")
        elif len(readers) > 1 and all(node.op_type == QUANTIZE for node in readers):
            yield Hit(node=graph.label(layer.node), detail=f"quantized by {' and '.join(map(graph.label, readers))}")


def find_int8(graph: Graph) -> Iterator[Hit]:
    """int8 activations that are not turned into uint8: with a Clip of the codes, or several readers."""
    for tensor in graph.quantized:
        if tensor.static or tensor.head.op_type != QUANTIZE or tensor.code_type != TensorProto.INT8:
            continue
        readers = [reader for node in tensor.dequantizers for reader in graph.readers.get(node.output[0], [])]
        if tensor.clip is None and len(readers) <= 1:
            continue
        bounded = tensor.clip is None or graph.clip_range(tensor.clip) is not None
        mechanical = tensor.sealed and bounded and tensor.zero_point is not None
        fix = partial(move_codes, graph, tensor, np.uint8, UINT8_OFFSET) if mechanical else None
        detail = "with a Clip of its codes" if tensor.clip is not None else f"{len(readers)} readers"
        yield Hit(node=graph.label(tensor.head), detail=detail, fix=fix)


def find_repeated_pairs(graph: Graph) -> Iterator[Hit]:
    """Tensors with two equal QuantizeLinear, and codes that are dequantized and quantized again."""
    seen: dict[str, list[Quantized]] = {}
    for tensor in graph.quantized:
        if tensor.head.op_type != QUANTIZE or not tensor.sealed or tensor.clip is not None:
            continue
        source = tensor.head.input[0]
        if source in graph.dequantized and _equal(graph.dequantized[source], tensor):
            kept, like = source, graph.dequantized[source]
        else:
            like = next((other for other in seen.get(source, []) if _equal(other, tensor)), tensor)
            kept = like.dequantizers[0].output[0]
        if like is tensor:
            seen.setdefault(source, []).append(tensor)
        else:
            fix = partial(_read_instead, graph, tensor, kept)
            yield Hit(node=graph.label(tensor.head), detail=f"as by {graph.label(like.head)}", fix=fix)


def _can_clip_codes(graph: Graph, tensor: Quantized) -> bool:
    bounded = tensor.clip is None or graph.clip_range(tensor.clip) is not None
    positive = tensor.scale is not None and bool(np.all(tensor.scale > 0))
    return bounded and positive and tensor.sealed and graph.opset >= CLIP_OPSET


def _behind(graph: Graph, conv: NodeProto) -> list[NodeProto]:
    """Readers of a convolution's result, behind its activation and max pooling."""
    readers = graph.readers.get(conv.output[0], [])
    while len(readers) == 1 and readers[0].op_type in (*CLIPS, "MaxPool"):
        readers = graph.readers.get(readers[0].output[0], [])
    return readers


def _read_instead(graph: Graph, tensor: Quantized, name: str) -> None:
    for node in tensor.dequantizers:
        redirect(graph, node.output[0], name)


def _equal(one: Quantized, two: Quantized) -> bool:
    """Whether two tensors have equal types, scales and zero-points."""
    if one.code_type != two.code_type or one.axis != two.axis or not one.sealed:
        return False
    pairs = ((one.scale, two.scale), (one.zero_point, two.zero_point))
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


RULES = (
    Rule(
        id="blocked-fusion",
        dialects=("ort",),
        severity="warning",
        effect="the convolution does not fuse with its activation and runs in float: slower than FP32",
        remedy="uint8 with zero-point 0 behind a Relu; a narrower range as an integer Clip between Q and DQ",
        find=find_blocked,
        exclusive=True,
    ),
    Rule(
        id="int8-activation",
        dialects=("ort",),
        severity="warning",
        effect="kernels on x86 take uint8; int8 is rewritten only between one Q and one DQ with one reader, and the "
        "layers around this tensor run in float",
        remedy="quantize activations to uint8, zero-point 128 for signed ones",
        find=find_int8,
        exclusive=True,
    ),
    Rule(
        id="float-output",
        dialects=("ort",),
        severity="warning",
        effect="the convolution runs in float, because its result is read in float or quantized in several ways",
        remedy="put one Q/DQ pair behind it that all its readers share, pooling among them",
        find=find_float_outputs,
    ),
    Rule(
        id="repeated-pair",
        dialects=("trt", "ort"),
        severity="warning",
        effect="one tensor is quantized twice to the same codes: two kernels, and by the rules for ort the layer "
        "before it stays in float",
        remedy="let all its readers share one Q/DQ pair",
        find=find_repeated_pairs,
    ),
)
