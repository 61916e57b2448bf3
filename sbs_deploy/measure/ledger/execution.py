"""Bits, multiply-accumulates and moved values of every layer of a graph.

They are read from the ONNX file that the engine was made from, which may differ from the plan.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from sbs_deploy.graph.links import MOVES, makers_of
from sbs_deploy.graph.names import LAYER_OPS, layer_of

_MOVES = (*MOVES, "Cast")
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One layer as a graph executes it; counts are per image, None if shapes are unknown."""

    bits_w: int
    bits_a: int
    weights: int
    inputs: int | None
    outputs: int | None
    macs: float | None

    def intensity(self, batch: int) -> float | None:
        """Multiply-accumulates per moved byte: input, weights and output are moved once each.

        An output counts with the bits of the input: for integers the quantizer behind the layer is fused.
        """
        if self.inputs is None or self.outputs is None or self.macs is None:
            return None
        moved_bits = batch * (self.inputs + self.outputs) * self.bits_a + self.weights * self.bits_w
        return batch * self.macs / (moved_bits / 8)


def executions(model: onnx.ModelProto, layers: Iterable[str]) -> dict[str, Execution]:
    """All layers of the plan in a graph.

    Args:
        model: a graph whose first axis is the batch; is changed in place.
        layers: names of layers, which their nodes or weights (NAME.weight) have.
    """
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = _Graph(onnx.shape_inference.infer_shapes(model).graph)
    names = set(layers)
    found = ((graph.layer_of(node), node) for node in graph.kernels)
    return {name: graph.execution(node) for name, node in found if name in names}


class _Graph:
    """Types, shapes and writers of a graph's tensors, by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = makers_of(graph)
        self.kernels = [node for node in graph.node if node.op_type in LAYER_OPS]
        self.types: dict[str, int] = {}
        self.sizes: dict[str, int | None] = {}
        self.shapes: dict[str, Sequence[int]] = {tensor.name: tensor.dims for tensor in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            known = tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim)
            self.sizes[value.name] = math.prod(axis.dim_value for axis in tensor.shape.dim) if known else None
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}

    def layer_of(self, node: onnx.NodeProto) -> str:
        """The plan's name of a layer's node, by its weights, or else the node's name."""
        return layer_of(self._constant(node.input[1])) or str(node.name)

    def execution(self, node: onnx.NodeProto) -> Execution:
        bits_a, bits_w = self._bits(node.input[0]), self._bits(node.input[1])
        if max(bits_a, bits_w) > 8:  # a float operand makes products float
            bits_a = bits_w = _BITS.get(self.types.get(node.output[0], TensorProto.FLOAT), 32)
        shape = self.shapes.get(self._constant(node.input[1]), ())
        inputs, outputs = self.sizes.get(node.input[0]), self.sizes.get(node.output[0])
        weights = math.prod(shape)
        macs: float | None = None
        if shape and inputs is not None and outputs is not None:
            macs = (
                inputs * weights / shape[0] if node.op_type == "ConvTranspose" else outputs * self._depth(node, shape)
            )
        return Execution(bits_w=bits_w, bits_a=bits_a, weights=weights, inputs=inputs, outputs=outputs, macs=macs)

    @staticmethod
    def _depth(node: onnx.NodeProto, shape: Sequence[int]) -> float:
        """Number of products per output value."""
        if node.op_type == "Conv":
            return math.prod(shape) / shape[0]
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return shape[-1] if transposed else shape[0]

    def _bits(self, name: str) -> int:
        """Bits of a tensor's codes if it is dequantized, else of its floats."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in _MOVES:
            maker = self.makers.get(maker.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return _BITS.get(self.types.get(name, TensorProto.FLOAT), 32)

    def _constant(self, name: str) -> str:
        """The initializer behind an input, through nodes that dequantize or move it."""
        while (maker := self.makers.get(name)) is not None:
            if maker.op_type not in (*_MOVES, "DequantizeLinear", "QuantizeLinear", "Clip"):
                break
            name = maker.input[0]
        return name
