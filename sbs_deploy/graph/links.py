"""The writers of a graph's tensors, and the operators that only move values."""

from onnx import GraphProto, ModelProto, NodeProto

MOVES = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators that return their input's values in another order or shape."""


def makers_of(graph: ModelProto | GraphProto) -> dict[str, NodeProto]:
    """The node that writes a tensor, by the tensor's name."""
    nodes = graph.graph.node if isinstance(graph, ModelProto) else graph.node
    return {output: node for node in nodes for output in node.output if output}
