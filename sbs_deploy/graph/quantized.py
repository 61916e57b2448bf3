"""Which layers of a Q/DQ graph are quantized."""

from typing import TYPE_CHECKING

from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.names import QUANTIZED_OPS

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
