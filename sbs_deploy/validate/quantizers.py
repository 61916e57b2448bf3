"""Separate a graph's quantizers from the graph: the function of each quantizer, and the graph without quantizers.

A network is quantized correctly if it is the float network without its quantizers, and every quantizer is the plan's.
Both can be checked to the last bits of float32, however far rounding of codes spreads through the network.

A quantizer is a chain [Clip] -> QuantizeLinear -> [Clip] -> DequantizeLinear. Its Clip may include a Clip of the
float graph (ReLU6), which is restored with the float graph's bounds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sbs_deploy.export.codes import Codes
from sbs_deploy.graph.edit import KEEPS_SIGN, NOT_NEGATIVE
from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.names import QUANTIZED_OPS, owner_of
from sbs_deploy.graph.tensor import Array
from sbs_train.contract.grid import Quantizer

EVERYTHING = (-np.inf, np.inf)
BEYOND = 3
"""Tested steps beyond the ends of a grid; one value far beyond is tested as well."""
TOLERANCE = 1e-5
"""Largest relative difference of quantized values, as scales are float32."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One quantizer of the graph."""

    source: str
    """The tensor that is quantized."""
    clip: tuple[float, float]
    """Ends of the Clip before QuantizeLinear."""
    scale: float
    zero_point: int
    codes: tuple[int, int]
    """Smallest and largest code, by the container and the Clip behind QuantizeLinear."""
    scale_back: float
    zero_point_back: int

    def __call__(self, x: Array) -> Array:
        """Quantized values of x, same shape."""
        with np.errstate(all="ignore"):  # a scale of 0 or NaN
            codes = np.rint(np.clip(x, *self.clip) / self.scale) + self.zero_point
        return np.asarray((np.clip(codes, *self.codes) - self.zero_point_back) * self.scale_back)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An input of a node in the quantized graph that reads a quantizer."""

    node: onnx.NodeProto
    index: int
    chain: Chain
    float_tensor: str | None
    """Tensor that the float graph's node reads there; None if the float graph has no such node."""

    @property
    def owner(self) -> str:
        """Name of the layer or node, for people."""
        return self.node.name or self.node.output[0]


class Graphs:
    """A quantized graph and its float graph."""

    def __init__(self, quantized: onnx.ModelProto, slim: onnx.ModelProto) -> None:
        self.quantized, self.slim = quantized, slim
        self._constants = constants_of(quantized)
        self._makers = makers_of(quantized)
        self._slim_constants = constants_of(slim)
        self._slim_makers = makers_of(slim)

    def operands(self) -> Iterator[Operand]:
        """All operands that read a quantizer, in graph order."""
        for node in self.quantized.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            origin = self._slim_makers.get(node.output[0])
            for index, tensor in enumerate(node.input):
                if (chain := self._chain(tensor)) is not None:
                    reads = origin.input[index] if origin is not None and len(origin.input) > index else None
                    yield Operand(node=node, index=index, chain=chain, float_tensor=reads)

    def _chain(self, tensor: str) -> Chain | None:
        """The quantizer that writes a tensor; None if none does, also for dequantized weights."""
        back = self._makers.get(tensor)
        if back is None or back.op_type != "DequantizeLinear" or back.input[0] in self._constants:
            return None
        codes, node = EVERYTHING, self._makers.get(back.input[0])
        if node is not None and node.op_type == "Clip":
            codes, node = bounds_of(node, self._constants), self._makers.get(node.input[0])
        if node is None or node.op_type != "QuantizeLinear":
            return None
        if not all(name in self._constants for name in (*node.input[1:], *back.input[1:])):
            return None
        zero_point = self._constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
        if zero_point.dtype.kind not in "iu" or any(
            self._constants[n].size != 1 for n in (*node.input[1:], *back.input[1:])
        ):
            return None
        container = np.iinfo(zero_point.dtype)
        least, most = max(codes[0], container.min), min(codes[1], container.max)
        source, clip = node.input[0], EVERYTHING
        before = self._makers.get(source)
        # A Clip that the float graph has at this place is not part of the quantizer.
        if before is not None and before.op_type == "Clip" and source not in self._slim_makers:
            source, clip = before.input[0], bounds_of(before, self._constants)
        return Chain(
            source=source,
            clip=clip,
            scale=self._constants[node.input[1]].item(),
            zero_point=zero_point.item(),
            codes=(int(least), int(most)),
            scale_back=self._constants[back.input[1]].item(),
            zero_point_back=self._constants[back.input[2]].item() if len(back.input) > 2 else 0,
        )

    def taken_over(self, operand: Operand) -> onnx.NodeProto | None:
        """The float graph's Clip that the quantizer's Clip includes."""
        maker = self._slim_makers.get(operand.float_tensor or "")
        taken = maker is not None and maker.op_type == "Clip" and maker.input[0] == operand.chain.source
        return maker if taken and operand.float_tensor != operand.chain.source else None

    def wrong_quantizers(self, codes: Codes) -> list[str]:
        """Layers and additions whose quantizers differ from those in `codes`, in graph order."""
        layers = {f"{name}.weight": layer.input for name, layer in codes.layers.items()}
        wrong: list[str] = []
        seen: set[str] = set()
        for operand in self.operands():
            weight = self._makers.get(operand.node.input[1]) if len(operand.node.input) > 1 else None
            name = weight.input[0] if weight is not None and weight.op_type == "DequantizeLinear" else ""
            if operand.node.op_type in QUANTIZED_OPS:
                wanted = layers.get(name) if operand.index == 0 else None
                seen.add(name)
            else:
                total = operand.node.output[0]
                wanted = codes.adds[total][operand.index] if total in codes.adds else None
                seen.add(total)
            if wanted is None or not self._is(operand, wanted):
                wrong.append(owner_of(name) if name in layers else operand.owner)
        left = [owner_of(name) if name in layers else name for name in (*layers, *codes.adds) if name not in seen]
        return wrong + left

    def _is(self, operand: Operand, wanted: Quantizer) -> bool:
        """Whether the graph's quantizer equals the plan's for every value that can reach it."""
        steps = np.arange(wanted.code_min - BEYOND, wanted.code_max + BEYOND, dtype=np.float64) + 0.25
        far = 100 * max(-wanted.code_min, wanted.code_max)
        x = np.concatenate([steps, [-far, far]]) * wanted.step
        taken = self.taken_over(operand)
        if taken is None:
            maker = self._slim_makers.get(operand.chain.source)
            own = (
                bounds_of(maker, self._slim_constants) if maker is not None and maker.op_type == "Clip" else EVERYTHING
            )
            x = np.clip(x, *own)
        if self._not_negative(operand.chain.source):
            x = np.maximum(x, 0)
        bounds = EVERYTHING if taken is None else bounds_of(taken, self._slim_constants)
        codes = np.clip(np.rint(np.clip(x, *bounds) / wanted.step), wanted.code_min, wanted.code_max)
        return np.allclose(operand.chain(x), codes * wanted.step, rtol=TOLERANCE, atol=TOLERANCE * wanted.step)

    def _not_negative(self, tensor: str) -> bool:
        node = self._slim_makers.get(tensor)
        while node is not None and node.op_type in KEEPS_SIGN:
            node = self._slim_makers.get(node.input[0])
        if node is None or node.op_type != "Clip":
            return node is not None and node.op_type in NOT_NEGATIVE
        return bounds_of(node, self._slim_constants)[0] >= 0

    def without_quantizers(self) -> onnx.ModelProto:
        """The quantized graph with dequantized weights and without quantizers."""
        model = onnx.ModelProto()
        model.CopyFrom(self.quantized)
        nodes = {node.output[0]: node for node in model.graph.node}
        back: dict[str, onnx.NodeProto] = {}
        for operand in self.operands():
            source, taken = operand.chain.source, self.taken_over(operand)
            if taken is not None:
                source = f"{operand.float_tensor}/float"
                if source not in back:
                    back[source] = helper.make_node(
                        "Clip",
                        [taken.input[0], *(f"{bound}/float" * bool(bound) for bound in taken.input[1:])],
                        [source],
                    )
            nodes[operand.node.output[0]].input[operand.index] = source
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        del model.graph.node[:]
        added = {bound for node in back.values() for bound in node.input[1:] if bound}
        for node in kept:
            for tensor in node.input:
                if tensor in back:
                    model.graph.node.append(back.pop(tensor))
            model.graph.node.append(node)
        for bound in sorted(added):
            value = self._slim_constants[bound.removesuffix("/float")]
            model.graph.initializer.append(numpy_helper.from_array(value, bound))
        return model


def constants_of(model: onnx.ModelProto) -> dict[str, Array]:
    """All constants of a graph, by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            if "value" in value:
                found[node.output[0]] = numpy_helper.to_array(value["value"])
            elif "value_float" in value:
                found[node.output[0]] = np.asarray(value["value_float"], np.float32)
    return found


def bounds_of(clip: onnx.NodeProto, constants: Mapping[str, Array]) -> tuple[float, float]:
    """The two ends of a Clip with constant ends."""
    low, high = (
        float(constants[name]) if name in constants else default
        for name, default in zip([*clip.input[1:], "", ""], EVERYTHING, strict=False)
    )
    return low, high
