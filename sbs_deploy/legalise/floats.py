"""Layers of a quantized graph that stay in float, with the additions beside them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

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
    left = without_layers(codes, names)
    return _with_additions_beside(left, left.layers, slim)


def without_idle_additions(codes: Codes, slim: onnx.ModelProto) -> Codes:
    """The codes without additions that have no convolution or Gemm beside them, as in a transformer.

    A MatMul of integers reads codes and writes floats, so rounding what it wrote before an addition gains nothing.
    """
    matrices = {owner_of(node.input[1]) for node in slim.graph.node if node.op_type == "MatMul"}
    return _with_additions_beside(codes, codes.layers.keys() - matrices, slim)


def _with_additions_beside(codes: Codes, kernels: Collection[str], slim: onnx.ModelProto) -> Codes:
    """The codes without additions that have none of these layers beside them."""
    makers, readers = makers_of(slim), readers_of(slim)
    sums = {node.output[0]: node for node in slim.graph.node if node.op_type == "Add" and node.output[0] in codes.adds}

    def beside(name: str) -> Iterator[str]:
        yield from _layers(sums[name].input, lambda tensor: [makers[tensor]] if tensor in makers else [], _inputs, sums)
        yield from _layers([name], lambda tensor: readers.get(tensor, []), _outputs, sums)

    adds = {name: pair for name, pair in codes.adds.items() if any(layer in kernels for layer in beside(name))}
    return replace(codes, adds=adds)


def _layers(
    tensors: Iterable[str],
    nodes_of: Callable[[str], Iterable[onnx.NodeProto]],
    next_of: Callable[[onnx.NodeProto], Iterable[str]],
    ends: Collection[str],
) -> Iterator[str]:
    """Names of the nearest layers in one direction."""
    waiting, seen = list(tensors), set[str]()
    while waiting:
        for node in nodes_of(waiting.pop()):
            if node.output[0] in seen or node.output[0] in ends:
                continue
            seen.add(node.output[0])
            if node.op_type in LAYER_OPS:
                yield owner_of(node.input[1])
            else:
                waiting += next_of(node)


def _inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input)


def _outputs(node: onnx.NodeProto) -> list[str]:
    return list(node.output)
