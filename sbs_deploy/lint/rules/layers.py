"""Rules for float operators between quantized layers, and for half quantized layers."""

from collections.abc import Iterator
from functools import partial

from onnx import NodeProto, TensorProto

from sbs_deploy.graph.links import MOVES
from sbs_deploy.graph.tensor import DEQUANTIZE, QUANTIZE
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.finding import Hit, Rule, RuleSet

_QOPERATORS = ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "DynamicQuantizeMatMul")
_PASSES = (
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Sum", "Concat", "Split", "Slice", "Pad"),
    *("ReduceMean", "Dropout", "Cast", "Expand", "Resize", *MOVES),
)
"""Operators that integer kernels compute as well, or that have a rule of their own."""
_POINTWISE = (
    *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish", "Tanh"),
    *("Mul", "Sub", "Div", "Min", "Max", "Neg", "Abs", "Exp", "Log", "Sqrt", "Pow", "Erf", "Softplus", "Where"),
)
"""Operators that are fused with the quantization behind them in trt files."""
_FUSES: dict[RuleSet, tuple[str, ...]] = {"trt": (*_PASSES, *_POINTWISE), "ort": _PASSES}
NAMED = 3
"""Number of examples in a detail."""


def summary(nodes: list[NodeProto]) -> str:
    """Numbers of nodes by operator, as text."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    parts = [f"{count} {op}" for op, count in sorted(counts.items(), key=lambda item: -item[1])]
    more = f" and {len(parts) - NAMED} other kinds" if len(parts) > NAMED else ""
    return ", ".join(parts[:NAMED]) + more


def is_qoperator(node: NodeProto) -> bool:
    """Whether an operator takes codes, with their scales as inputs."""
    return node.op_type.startswith("QLinear") or node.op_type in _QOPERATORS


def find_qoperators(graph: Graph) -> Iterator[Hit]:
    """Operators (QLinearConv and others) that take codes, with scales as inputs."""
    for node in graph.nodes:
        if is_qoperator(node):
            yield Hit(node=graph.label(node), detail=node.op_type)


def find_half_quantized(graph: Graph) -> Iterator[Hit]:
    """Layers with only input or only weights quantized, except for INT4 weights."""
    for layer in graph.layers:
        if (layer.x is None) != (layer.w is None) and not (layer.w and layer.w.code_type == TensorProto.INT4):
            # If no codes follow, a product's quantized input may only be meant for other readers.
            yield Hit(node=graph.label(layer.node), detail="float weights" if layer.w is None else "float input")


def find_trt_residuals(graph: Graph) -> Iterator[Hit]:
    """Additions of two float feature maps."""
    for node in _residuals(graph):
        if not any(graph.quantized_source(name) for name in node.input):
            yield Hit(node=graph.label(node))


def find_ort_residuals(graph: Graph) -> Iterator[Hit]:
    """Additions with a float operand or result."""
    for node in _residuals(graph):
        floats = [name for name in node.input if graph.quantized_source(name) is None]
        if floats:
            yield Hit(node=graph.label(node), detail=f"{' and '.join(floats)} in float")


def _residuals(graph: Graph) -> Iterator[NodeProto]:
    for node in graph.nodes:
        if node.op_type not in ("Add", "Sum") or len(node.input) != 2 or not graph.between_codes(node):
            continue
        one, two = (graph.shapes.get(name) for name in node.input)
        flat = one is not None and two is not None and (len(one) < 3 or len(two) < 3 or one[1:] != two[1:])
        if not flat and not any(name in graph.static for name in node.input):
            yield node


def find_islands(graph: Graph, *, rules: RuleSet) -> Iterator[Hit]:
    """Float operators between quantized layers that these rules do not fuse: one hit for each connected piece of the
    float graph that holds such an operator."""
    layers = {id(layer.node) for layer in graph.layers if layer.quantized}
    piece_of: dict[str, list[NodeProto]] = {}
    pieces: list[list[NodeProto]] = []
    for node in graph.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE) or id(node) in layers or not graph.between_codes(node):
            continue
        piece = [node]
        for other in {id(p): p for p in (piece_of.get(name) for name in node.input) if p is not None}.values():
            pieces = [p for p in pieces if p is not other]
            piece = [*other, *piece]
        pieces.append(piece)
        piece_of.update({output: piece for member in piece for output in member.output})
    for piece in pieces:
        breaking = [node for node in piece if node.op_type not in _FUSES[rules]]
        if breaking:
            yield Hit(node=graph.label(breaking[0]), detail=summary(breaking))


RULES = (
    Rule(
        id="qoperator",
        dialects=("trt",),
        severity="error",
        effect="there is no such operator: the model is refused",
        remedy="write the model in QDQ format (quantize_static: quant_format=QuantFormat.QDQ)",
        find=find_qoperators,
    ),
    Rule(
        id="half-quantized",
        dialects=("trt",),
        severity="warning",
        effect="the layer runs in float, and its codes are converted first",
        remedy="quantize its input and its weights both, or neither",
        find=find_half_quantized,
    ),
    Rule(
        id="half-quantized",
        dialects=("ort",),
        severity="warning",
        effect="with a float input the layer runs in float; with float weights these are quantized by the runtime, "
        "which answers otherwise than the file says",
        remedy="quantize its input and its weights both, or neither",
        find=find_half_quantized,
    ),
    Rule(
        id="residual",
        dialects=("trt",),
        severity="warning",
        effect="the sum is computed from float tensors that are written out and read again",
        remedy="quantize the residual input of the Add (sbs-train --search.quantize-residual)",
        find=find_trt_residuals,
    ),
    Rule(
        id="residual",
        dialects=("ort",),
        severity="warning",
        effect="the Add and the convolution before it run in float; with Q/DQ on both inputs ResNet-18 went from "
        "1.05x to 3.05x of FP32's speed",
        remedy="quantize both inputs of the Add (sbs-train --search.quantize-residual)",
        find=find_ort_residuals,
    ),
    Rule(
        id="float-island",
        dialects=("trt",),
        severity="warning",
        effect="runs in float between quantized layers, with a reformat on either side",
        remedy="quantize it, move it behind the last quantized layer, or fold it (BatchNorm into the weights)",
        find=partial(find_islands, rules="trt"),
    ),
    Rule(
        id="float-island",
        dialects=("ort",),
        severity="warning",
        effect="runs in float and keeps the layer before it in float as well",
        remedy="use Relu or Clip, quantize the operator's input and output, or fold it (BatchNorm into the weights)",
        find=partial(find_islands, rules="ort"),
    ),
)
