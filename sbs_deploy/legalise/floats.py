"""Layers of a quantized graph that stay in float, with the additions beside them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

import onnx

from sbs_deploy.export.codes import Codes
from sbs_deploy.graph.links import makers_of, readers_of
from sbs_deploy.graph.names import QUANTIZED_OPS, owner_of
from sbs_deploy.legalise.outputs import GATES, LEAST, ON_CODES


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
    return _with_additions_beside(without_layers(codes, names), slim)


def without_idle_additions(codes: Codes, slim: onnx.ModelProto) -> Codes:
    """The codes without additions that gain nothing from codes, as in a transformer.

    No convolution or Gemm writes an operand or reads the sum, but for operators between that compute on codes. A MatMul
    of integers writes floats, and a LayerNormalization reads floats.
    """
    through = ("Conv", "Gemm", "Relu", "Clip", *LEAST, *GATES, *ON_CODES, "Mul", "Concat")
    return _with_additions_beside(codes, slim, {n.output[0] for n in slim.graph.node if n.op_type not in through})


def _with_additions_beside(codes: Codes, slim: onnx.ModelProto, barriers: Collection[str] = ()) -> Codes:
    """The codes without additions that have no quantized layer beside them, on this side of the barriers.

    Args:
        barriers: tensors whose nodes end the search.
    """
    makers, readers = makers_of(slim), readers_of(slim)
    sums = {node.output[0]: node for node in slim.graph.node if node.op_type == "Add" and node.output[0] in codes.adds}
    ends = {*sums, *barriers}

    def beside(name: str) -> Iterator[str]:
        yield from _layers(sums[name].input, lambda tensor: [makers[tensor]] if tensor in makers else [], _inputs, ends)
        yield from _layers([name], lambda tensor: readers.get(tensor, []), _outputs, ends)

    adds = {name: pair for name, pair in codes.adds.items() if any(layer in codes.layers for layer in beside(name))}
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
            if node.op_type in QUANTIZED_OPS:
                yield owner_of(node.input[1])
            else:
                waiting += next_of(node)


def _inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input)


def _outputs(node: onnx.NodeProto) -> list[str]:
    return list(node.output)
