"""Who writes each tensor of a graph, which operators only move values, and what ONNX Runtime makes of names."""

import re

from onnx import GraphProto, ModelProto, NodeProto

MOVES = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators that give their input's values in another order or shape."""
_APPENDED = re.compile(r"(_token_\d+|_s8_2_u8|_nchwc|_nhwc|_out\d+)+$")


def makers_of(graph: ModelProto | GraphProto) -> dict[str, NodeProto]:
    """The node that writes a tensor, by the tensor's name."""
    nodes = graph.graph.node if isinstance(graph, ModelProto) else graph.node
    return {output: node for node in nodes for output in node.output if output}


def own_name(name: str) -> str:
    """A node's or tensor's name without what ONNX Runtime appends to what it copies into another layout or type."""
    return _APPENDED.sub("", name)
