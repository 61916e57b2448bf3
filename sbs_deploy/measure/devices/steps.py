"""An engine's node times as times of a network's steps: its layers, and behind each layer what belongs to none.

What an engine runs between two layers differs with channels and bits (a Reorder here, an addition fused there), so it
is one step: everything behind a layer, up to the next ones.
"""

from collections.abc import Sequence
from typing import TypedDict

import onnx

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.measure.devices.synthetic import owners_of
from sbs_deploy.measure.layer_times import layer_times

FIRST = ""
"""What runs before the first layer."""
BEHIND = "behind "
"""Start of the name of a step that is no layer; the layer's name comes behind it."""

_OF_WEIGHTS = ("weight_dequantized", "bias_dequantized")


class Spent(TypedDict):
    """What the profiler says of one step."""

    ms: float
    nodes: int
    """How many nodes of the engine that is."""


def step_times(times: Sequence[NodeTime], model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, Spent]:
    """By step: `LAYER`, or `behind LAYER`.

    Args:
        times: of the engine's nodes, in the order in which they run.
        model: the quantized graph that the engine executes.
    """
    owners = owners_of(model)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    found: dict[str, Spent] = {}
    last = FIRST
    for time in times:
        (row,) = layer_times([time], model, layers)
        name = row.layer if row.category == "layer" else None
        weights_of = next((part for one in time.nodes if (part := _whose_weights(one)) in layers), None)
        if name is None and weights_of is not None:
            name = weights_of  # constants, which an engine may read at any time
        elif name is None:
            tensors = [outputs.get(one, one) for one in (*time.nodes, *time.tensors)]
            # What an engine made up itself has nothing of the graph: it stands behind what ran before it.
            known = [owners[tensor] or FIRST for tensor in tensors if tensor in owners]
            last = known[0] if known else last
            name = BEHIND + last
        else:
            last = name
        spent = found.setdefault(name, {"ms": 0.0, "nodes": 0})
        # A neighbour on the machine makes nothing quicker.
        spent["ms"] += time.ms if time.quickest_ms is None else time.quickest_ms
        spent["nodes"] += 1
    return found


def _whose_weights(node: str) -> str:
    """The layer that a node dequantizes weights of, by its name."""
    layer, _, part = node.rpartition(".")
    return layer if part in _OF_WEIGHTS else ""
