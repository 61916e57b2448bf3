"""Rules for opsets, domains and floating-point types."""

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from sbs_deploy.graph.tensor import DEQUANTIZE, QUANTIZE
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.finding import Hit, Rule
from sbs_deploy.lint.rules.codes import type_name
from sbs_deploy.lint.rules.layers import is_qoperator, summary
from sbs_deploy.lint.rules.scales import AXIS_OPSET

ONNX_DOMAINS = ("", "ai.onnx")
_TRT_FOREIGN = (QUANTIZE, DEQUANTIZE, "Gelu", "GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization")
"""Operators of other domains that the parser for trt files takes (`OnnxParser.supports_operator`, version 1.7)."""
_ONE_TYPE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Min", "Max", "Concat", "Sum")
_WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)


def find_per_channel_before_axis(graph: Graph) -> Iterator[Hit]:
    """Several scales in an opset whose operator has a single scale."""
    for tensor in graph.quantized:
        if tensor.per_channel and graph.opset < AXIS_OPSET and tensor.head.domain in ONNX_DOMAINS:
            yield Hit(node=graph.label(tensor.head), detail=f"opset {graph.opset}")


def find_types_beyond_opset(graph: Graph) -> Iterator[Hit]:
    """Types, or combinations of types, that an operator lacks in the model's opset."""
    for node in graph.nodes:
        if node.domain in ONNX_DOMAINS and (detail := _wrong_type(graph, node)) is not None:
            yield Hit(node=graph.label(node), detail=detail)


def find_mixed_types(graph: Graph) -> Iterator[Hit]:
    """Operators whose inputs have different types but must have one."""
    for node in graph.nodes:
        if node.op_type in _ONE_TYPE:
            types = [graph.type_of(name) for name in node.input if name]
            known = list(dict.fromkeys(t for t in types if t != TensorProto.UNDEFINED))
            if len(known) > 1:
                yield Hit(node=graph.label(node), detail=" and ".join(type_name(t) for t in known))


def find_foreign_operators(graph: Graph) -> Iterator[Hit]:
    """Operators of other domains than ONNX, except those on codes, which have a rule of their own."""
    for node in graph.nodes:
        if node.domain not in ONNX_DOMAINS and node.op_type not in _TRT_FOREIGN and not is_qoperator(node):
            yield Hit(node=graph.label(node), detail=f"{node.domain}.{node.op_type}")


def find_fp32(graph: Graph) -> Iterator[Hit]:
    """One hit for all operators, except Cast, that compute in float32 or float64."""
    wide = [
        node
        for node in graph.nodes
        if node.op_type not in (QUANTIZE, DEQUANTIZE, "Cast")
        and any(graph.type_of(name) in _WIDE and name not in graph.static for name in node.output)
    ]
    return _first(graph, wide)


def find_fp16(graph: Graph) -> Iterator[Hit]:
    """One hit for all layers in float16."""
    half = [n.node for n in graph.layers if graph.type_of(n.node.output[0]) == TensorProto.FLOAT16]
    return _first(graph, half)


def find_bf16(graph: Graph) -> Iterator[Hit]:
    """One hit for all operators that read bfloat16."""
    found = [n for n in graph.nodes if n.op_type != "Cast" and TensorProto.BFLOAT16 in map(graph.type_of, n.input)]
    return _first(graph, found)


def _first(graph: Graph, nodes: list[NodeProto]) -> Iterator[Hit]:
    """One hit for all of the nodes, if there are any."""
    if nodes:
        yield Hit(node=graph.label(nodes[0]), detail=f"first of {summary(nodes)}")


def _wrong_type(graph: Graph, node: NodeProto) -> str | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} does not exist in opset {graph.opset}"
    bound: dict[str, int] = {}
    for index, name in enumerate(node.input):
        found = graph.type_of(name) if name else TensorProto.UNDEFINED
        if found == TensorProto.UNDEFINED or not schema.inputs:
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if f"tensor({type_name(found)})" not in formal.types:
            needed = _first_opset(node.op_type, index, found, graph.opset)
            since = f", from {needed} on" if needed else ""
            return f"{node.op_type} has no {type_name(found)} in opset {graph.opset}{since}"
        if formal.is_homogeneous and bound.setdefault(formal.type_str, found) != found:
            return f"{formal.name} is {type_name(found)}, not {type_name(bound[formal.type_str])}"
    return None


def _first_opset(op_type: str, index: int, wanted: int, opset: int) -> int | None:
    """The first later opset in which an operator's input may have a type."""
    for version in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        inputs = onnx.defs.get_schema(op_type, version, "").inputs
        if f"tensor({type_name(wanted)})" in inputs[min(index, len(inputs) - 1)].types:
            return version
    return None


RULES = (
    Rule(
        id="opset-axis",
        dialects=("trt", "ort"),
        severity="error",
        effect="per-channel scales have no axis before opset 13: readers of ort files apply them along axis 1, "
        "those of trt files along the output channels",
        remedy="write the model at opset 21; onnx.version_converter keeps what is wrong",
        find=find_per_channel_before_axis,
    ),
    Rule(
        id="opset-type",
        dialects=("ort",),
        severity="error",
        effect="not valid in this opset, and not loaded: `Type Error`",
        remedy="write the model at opset 21 (float16 scales need 19, INT4 and 16 bits 21)",
        find=find_types_beyond_opset,
    ),
    Rule(
        id="mixed-types",
        dialects=("trt",),
        severity="error",
        effect="strongly typed networks refuse it: `must be of same type`",
        remedy="make weights, bias and scales one type, FP16 with FP16, or put a Cast between",
        find=find_mixed_types,
    ),
    Rule(
        id="domain",
        dialects=("trt",),
        severity="error",
        effect="the parser looks for a plugin of that name: `Plugin not found`",
        remedy="export with operators of ONNX itself, before any runtime has optimized the graph",
        find=find_foreign_operators,
    ),
    Rule(
        id="bf16",
        dialects=("ort",),
        severity="error",
        effect="there are no such kernels on a CPU: `NOT_IMPLEMENTED`",
        remedy="store float weights and scales as float32",
        find=find_bf16,
    ),
    Rule(
        id="fp32",
        dialects=("trt",),
        severity="warning",
        effect="computes in FP32: its leftovers, and the reformats at each boundary, are the usual reason for an INT8 "
        "engine slower than FP16",
        remedy="store scales, biases and float weights as float16, with one Cast at each end of the network",
        find=find_fp32,
    ),
    Rule(
        id="fp16",
        dialects=("ort",),
        severity="warning",
        effect="FP16 convolutions are computed in FP32 on a CPU, with a Cast around each",
        remedy="store float weights and scales as float32 for this target",
        find=find_fp16,
    ),
)
