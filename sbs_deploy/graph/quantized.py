"""Which layers of a Q/DQ graph are quantized, and which of them an engine runs in float."""

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.names import QUANTIZED_OPS, called

if TYPE_CHECKING:
    from onnx import ModelProto


def quantized_layers(model: "ModelProto") -> dict[str, str]:
    """Convolutions and matrix products whose operands both come from DequantizeLinear: the initializer with their
    integer weights, by name, in graph order."""
    makers = makers_of(model)
    found = {}
    for node in model.graph.node:
        operands = [makers.get(name) for name in node.input[:2]]
        dequantized = [maker for maker in operands if maker is not None and maker.op_type == "DequantizeLinear"]
        if node.op_type in QUANTIZED_OPS and len(dequantized) == 2:
            found[str(node.name)] = str(dequantized[1].input[0])
    return found


def layer_counts(quantized: Iterable[str], integer: Container[str] | None) -> dict[str, Any]:
    """Details of an engine's manifest: the number of `quantized_layers`, and the `float_layers` among them.

    A layer that runs several times is in float if one of its nodes is.

    Args:
        quantized: names of nodes.
        integer: names of the nodes that the engine runs in integers; None if it does not tell.
    """
    nodes = list(quantized)
    float_nodes = None if integer is None else [name for name in nodes if name not in integer]
    left = None if float_nodes is None else list(dict.fromkeys(map(called, float_nodes)))
    return {"quantized_layers": len(set(map(called, nodes))), "float_layers": left}
