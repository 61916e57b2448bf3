"""Who writes and reads each tensor of a graph, and which operators only move values."""

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, NodeProto

from sbs_deploy.graph.tensor import DEQUANTIZE, QUANTIZE, reads

MOVES = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators that return their input's values in another order or shape."""


def makers_of(graph: ModelProto | GraphProto) -> dict[str, NodeProto]:
    """The node that writes a tensor, by the tensor's name."""
    nodes = graph.graph.node if isinstance(graph, ModelProto) else graph.node
    return {output: node for node in nodes for output in node.output if output}


def readers_of(model: ModelProto) -> dict[str, list[NodeProto]]:
    """The nodes that read a tensor, each once, by the tensor's name; a node reads what its bodies take from outside."""
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(reads(node)):
            found.setdefault(name, []).append(node)
    return found


def stored_behind(name: str, makers: Mapping[str, NodeProto]) -> str:
    """The tensor that `name` comes from, through what quantizes, converts or moves values; weights are initializers."""
    through = (*MOVES, "Cast", "Clip", QUANTIZE, DEQUANTIZE)
    while (maker := makers.get(name)) is not None and maker.op_type in through:
        name = maker.input[0]
    return name
