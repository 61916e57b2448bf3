"""Which layers of a Q/DQ graph are quantized, and which can run in integers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sbs_deploy.graph.links import makers_of, readers_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True, kw_only=True)
class QuantizedConvolution:
    """A convolution between dequantized input and weights."""

    name: str
    weight: str
    """Initializer that holds the integer weights."""
    output: str
    """Tensor of the result."""


def quantized_layers(model: "ModelProto") -> list[str]:
    """Names of convolutions and matrix products whose operands both come from DequantizeLinear."""
    return [node.name for node, _ in _quantized(model, "Conv", "Gemm", "MatMul")]


def quantized_convolutions(model: "ModelProto") -> list[QuantizedConvolution]:
    """Every Conv whose input and weights both come from DequantizeLinear."""
    return [
        QuantizedConvolution(name=node.name, weight=weight, output=node.output[0])
        for node, weight in _quantized(model, "Conv")
    ]


def fusable_convolutions(model: "ModelProto") -> list[QuantizedConvolution]:
    """Quantized convolutions whose result goes, through at most one Relu or Clip, to one QuantizeLinear alone.

    Only these have an integer form with an equal result: a convolution whose float output has other readers (a float
    Add, pooling) must be computed in float.
    """
    readers = readers_of(model)
    kept_outputs = {output.name for output in model.graph.output}
    found = []
    for conv in quantized_convolutions(model):
        result = conv.output
        after = readers.get(result, [])
        if len(after) == 1 and after[0].op_type in ("Relu", "Clip") and result not in kept_outputs:
            result = after[0].output[0]
        after = readers.get(result, [])
        if len(after) == 1 and after[0].op_type == "QuantizeLinear" and result not in kept_outputs:
            found.append(conv)
    return found


def _quantized(model: "ModelProto", *kinds: str) -> "Iterator[tuple[NodeProto, str]]":
    """Nodes of the given types with two dequantized operands, each with the tensor of its weights' codes."""
    makers = makers_of(model)
    for node in model.graph.node:
        if node.op_type in kinds:
            operands = [makers.get(name) for name in node.input[:2]]
            dequantized = [maker for maker in operands if maker is not None and maker.op_type == "DequantizeLinear"]
            if len(dequantized) == 2:
                yield node, dequantized[1].input[0]
