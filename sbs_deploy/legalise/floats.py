"""Layers of a quantized graph that stay in float, with the additions beside them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import onnx

from sbs_deploy.export.codes import Codes
from sbs_deploy.graph.links import makers_of, readers_of
from sbs_deploy.graph.names import LAYER_OPS, owner_of


def without_layers(codes: Codes, names: Collection[str]) -> Codes:
    """The codes without the named layers, which stay in float: the plan's weights, and unrounded inputs."""
    return replace(codes, layers={name: layer for name, layer in codes.layers.items() if name not in names})


def with_float_layers(codes: Codes, names: Collection[str], slim: onnx.ModelProto) -> Codes:
    """The codes without the named layers, and without additions that have lost their last quantized layer.

    An addition stays quantized while a layer that writes an operand or reads the sum is: its quantizers are what such a
    layer's integer kernel writes. Other additions between the two end the search, as they have quantizers of their own.

    Args:
        slim: the float graph that the codes belong to.
    """
    left, readers = without_layers(codes, names), readers_of(slim)
    writers = {tensor: [node] for tensor, node in makers_of(slim).items()}
    sums = {node.output[0]: node for node in slim.graph.node if node.op_type == "Add" and node.output[0] in codes.adds}

    def beside(name: str) -> Iterator[str]:
        yield from _layers(sums[name].input, writers, "input", sums)
        yield from _layers([name], readers, "output", sums)

    adds = {name: pair for name, pair in left.adds.items() if any(layer in left.layers for layer in beside(name))}
    return replace(left, adds=adds)


def _layers(
    tensors: Iterable[str],
    nodes: Mapping[str, Sequence[onnx.NodeProto]],
    further: Literal["input", "output"],
    ends: Iterable[str],
) -> Iterator[str]:
    """Names of the nearest layers in one direction, along `nodes` of a tensor and the `further` tensors of a node."""
    waiting, seen = list(tensors), set(ends)
    while waiting:
        for node in nodes.get(waiting.pop(), ()):
            if node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type in LAYER_OPS:
                yield owner_of(node.input[1])
            else:
                waiting += getattr(node, further)
