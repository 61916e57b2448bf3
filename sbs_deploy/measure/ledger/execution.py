"""Bits, multiply-accumulates and moved values of every layer of a graph.

They are read from the ONNX file that the engine was made from, which may differ from the plan.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto

from sbs_deploy.graph.links import MOVES, stored_behind
from sbs_deploy.graph.names import QUANTIZED_OPS, layer_of
from sbs_deploy.graph.tensor import attribute
from sbs_deploy.graph.view import Graph
from sbs_train.contract.cost import FP32_BITS

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


def in_float(layer: Execution) -> Execution:
    """The layer with products in float."""
    return replace(layer, bits_w=FP32_BITS, bits_a=FP32_BITS)


def executions(model: onnx.ModelProto, layers: Iterable[str]) -> dict[str, Execution]:
    """All layers of the plan in a graph.

    Args:
        model: a graph whose first axis is the batch; is changed in place.
        layers: names of layers, which their nodes or weights (NAME.weight) have.
    """
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph, names = _Kernels(model), set(layers)
    found: dict[str, Execution] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZED_OPS and (name := graph.layer_of(node)) in names:
            one = graph.execution(node)
            found[name] = _together(found[name], one) if name in found else one
    return found


def _together(one: Execution, other: Execution) -> Execution:
    """Two calls of a layer: in float where one of them is, and its weights move once."""

    def total(a: Any, b: Any) -> Any:
        return None if a is None or b is None else a + b

    return replace(
        one,
        bits_w=max(one.bits_w, other.bits_w),
        bits_a=max(one.bits_a, other.bits_a),
        inputs=total(one.inputs, other.inputs),
        outputs=total(one.outputs, other.outputs),
        macs=total(one.macs, other.macs),
    )


class _Kernels(Graph):
    """What convolutions and matrix products of a graph execute."""

    def layer_of(self, node: onnx.NodeProto) -> str:
        """The plan's name of a kernel: that of its weights, or its own."""
        return layer_of(stored_behind(node.input[1], self.makers)) or str(node.name)

    def execution(self, node: onnx.NodeProto) -> Execution:
        bits_a, bits_w = self._bits(node.input[0]), self._bits(node.input[1])
        if max(bits_a, bits_w) > 8:  # a float operand makes products float
            bits_a = bits_w = _BITS.get(self.types.get(node.output[0], TensorProto.FLOAT), 32)
        stored = self.initializers.get(stored_behind(node.input[1], self.makers))
        shape = () if stored is None else stored.dims
        inputs, outputs = self._size(node.input[0]), self._size(node.output[0])
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
        return shape[-1] if attribute(node, "transB", 0) else shape[0]

    def _bits(self, name: str) -> int:
        """Bits of a tensor's codes if it is dequantized, else of its floats."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in _MOVES:
            maker = self.makers.get(maker.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return _BITS.get(self.types.get(name, TensorProto.FLOAT), 32)

    def _size(self, name: str) -> int | None:
        """How many values a tensor has; None where its shape is not known."""
        shape = self.shapes.get(name)
        sizes = [size for size in shape or () if isinstance(size, int)]
        return math.prod(sizes) if shape is not None and len(sizes) == len(shape) else None
