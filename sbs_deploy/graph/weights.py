"""Operators with constant weights: their codes, and the axis of the operator along which the scales run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto

from sbs_deploy.graph.constants import RESHAPES
from sbs_deploy.graph.tensor import Array, Quantized, attribute

if TYPE_CHECKING:
    from sbs_deploy.graph.view import Graph

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution, or a matrix product with constant weights."""

    node: NodeProto
    x: Quantized | None
    """The quantized input; None for a float input."""
    w: Quantized | None
    order: tuple[int, ...] | None
    """Axes of the dequantized tensor in the order of the operator's weights; None behind a Reshape."""
    weight_shape: tuple[int, ...]
    """Shape that the operator reads."""
    bias: str
    """Tensor with a value per output channel: an input, or the constant of an Add behind a MatMul; empty if none."""
    result: str
    """Tensor of the result, including an Add of the bias."""

    @property
    def quantized(self) -> bool:
        """Whether input and weights are both quantized."""
        return self.x is not None and self.w is not None

    @property
    def group(self) -> int:
        """Groups of a convolution."""
        return int(attribute(self.node, "group", 1))

    @property
    def depthwise(self) -> bool:
        """Whether the layer is a depthwise convolution."""
        shape = self.weight_shape
        return self.group > 1 and self.group in shape[:2] and shape[1] == 1

    @property
    def output_axis(self) -> int:
        """The axis of output channels in the weights."""
        op = self.node.op_type
        if op == "MatMul":
            return len(self.weight_shape) - 1
        return 0 if op == "Conv" or (op == "Gemm" and attribute(self.node, "transB", 0)) else 1

    @property
    def outputs(self) -> int:
        """Output channels of all groups together."""
        own = self.weight_shape[self.output_axis]
        return own * self.group if self.node.op_type == "ConvTranspose" else own

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels of one group."""
        shape, out = self.weight_shape, self.output_axis
        return shape[(len(shape) - 2) if self.node.op_type == "MatMul" else 1 - out], shape[out]

    @property
    def scale_axis(self) -> int | None:
        """The axis of several scales in the weights; None for a single scale, or if not known."""
        if self.w is None or not self.w.per_channel or self.order is None:
            return None
        return self.order.index(self.w.axis % len(self.order))

    def codes(self, graph: "Graph") -> Array | None:
        """Codes of the weights, output channels first; None if they are not constant or their axes not known."""
        values = None if self.w is None else graph.constant(self.w.codes)
        if values is None or self.order is None or values.ndim != len(self.order):
            return None
        out = np.moveaxis(np.transpose(values, self.order), self.output_axis, 0)
        return out.reshape(len(out), -1)


def layers_of(graph: "Graph") -> Iterator[Layer]:
    """All convolutions and matrix products with constant weights, in graph order."""
    for node in graph.nodes:
        if node.op_type not in LAYERS or len(node.input) < 2 or node.input[1] not in graph.static:
            continue
        shape = tuple(d for d in graph.shapes.get(node.input[1], ()) if isinstance(d, int))
        if len(shape) < 2:
            continue
        w, order = _weights(graph, node.input[1], len(shape))
        bias, result = (node.input[2] if len(node.input) > 2 else ""), node.output[0]
        if node.op_type == "MatMul" and len(shape) == 2:
            bias, result = _added(graph, result, shape[1])
        x = graph.quantized_source(node.input[0])
        yield Layer(node=node, x=x, w=w, order=order, weight_shape=shape, bias=bias, result=result)


def _weights(graph: "Graph", name: str, rank: int) -> tuple[Quantized | None, tuple[int, ...] | None]:
    """(quantized tensor of an operator's weights, order of its axes in the operator)."""
    order: tuple[int, ...] | None = tuple(range(rank))
    while name not in graph.dequantized:
        maker = graph.makers.get(name)
        if maker is None or maker.op_type not in ("Identity", "Transpose", *RESHAPES):
            return None, None
        if maker.op_type in RESHAPES:
            order = None
        elif maker.op_type == "Transpose" and order is not None:
            perm = attribute(maker, "perm", range(rank)[::-1])
            order = tuple(perm[axis] for axis in order)
        name = maker.input[0]
    return graph.dequantized[name], order


def _added(graph: "Graph", product: str, outputs: int) -> tuple[str, str]:
    """(bias, sum) of an Add behind a product; (empty, product) without such an Add."""
    readers = graph.readers.get(product, [])
    if len(readers) == 1 and readers[0].op_type == "Add" and product not in graph.outputs:
        others = [name for name in readers[0].input if name != product]
        if len(others) == 1 and others[0] in graph.static and graph.shapes.get(others[0]) == (outputs,):
            return others[0], readers[0].output[0]
    return "", product
