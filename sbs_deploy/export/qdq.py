"""Insert quantize/dequantize pairs into the slim float graph: one pass, two dialects.

The pass turns   x -> Conv(W, b)   into

    x -> [Clip] -> QuantizeLinear -> [Clip] -> DequantizeLinear -> Conv(DequantizeLinear(codes), b)

for every quantized layer, and puts such a pair on both operands of quantized residual additions. A `Dialect` says how
container, smaller grids and bias are written. A Clip that only quantizers read (ReLU6) is merged into their Clip, which
is exact, since rounding keeps the order of values.
Layers are matched by the name of their weights, which the exporter keeps. No torch: this runs on devices.

A linear layer is a Gemm, or over more than two axes a MatMul with transposed weights.

Shapes: codes_OIHW or codes_OI; scale_O one weight scale an output channel; bias_O.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import Dialect
from sbs_deploy.graph.edit import clip_before, constant, input_name, insert, not_negative
from sbs_deploy.graph.names import QUANTIZED_OPS, call_name, called
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Quantizer

OPSET = 21
PLAN_KEY = "sbs.plan_sha256"
"""Metadata key of a quantized graph: SHA-256 of its plan."""
DIALECT_KEY = "sbs.dialect"

BIAS_LIMIT = 2**30
"""Largest |int32 bias|, which leaves room for the sum of products."""


def quantized_onnx(slim: onnx.ModelProto, codes: Codes, dialect: Dialect, *, plan_sha256: str) -> onnx.ModelProto:
    """The slim float graph with Q/DQ, checked.

    Raises:
        SbsError: a layer's weights are missing in the graph, or are not read by a convolution or linear layer.
    """
    model = ir.from_proto(slim)
    try:
        InsertQDQ(codes, dialect)(model)
    except ir.passes.PreconditionError as error:
        if isinstance(error.__cause__, SbsError):
            raise error.__cause__ from None
        raise
    model.metadata_props.update({PLAN_KEY: plan_sha256, DIALECT_KEY: dialect.name})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


class InsertQDQ(ir.passes.InPlacePass):
    """Quantize inputs and weights of the named layers, whose weights are called `NAME.weight`, and additions."""

    def __init__(self, codes: Codes, dialect: Dialect) -> None:
        super().__init__()
        self.layers = codes.layers
        self.by_weight = {f"{name}.weight": name for name in codes.layers}
        self.adds = codes.adds
        self.dialect = dialect

    def requires(self, model: ir.Model) -> None:
        """Check the opset, the additions, and for every layer one operator whose weights have the codes' shape."""
        version = model.opset_imports.get("")
        if version != OPSET:
            raise SbsError(f"the graph has opset {version}, not {OPSET}; make it again with `sbs-deploy export`")
        for name, layer in self.layers.items():
            nodes, weight = _layer_nodes(model.graph, name)
            shape = list(weight.shape.numpy()) if weight.shape is not None else []
            if any(node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) for node in nodes):
                raise SbsError(f"layer {name}: Gemm with untransposed weights is not supported; leave it in float")
            expected = list(stored_codes(nodes[0].op_type, layer.codes).shape)
            if weight.dtype != ir.DataType.FLOAT or shape != expected:
                raise SbsError(
                    f"layer {name}: weights are {weight.dtype} {shape}, expected FLOAT {expected}; "
                    f"model.slim.onnx and model.slim.npz do not belong together, run `sbs-deploy export`"
                )
        sums = {node.outputs[0].name for node in model.graph if node.op_type == "Add"}
        if missing := sorted(self.adds.keys() - sums):
            raise SbsError(
                f"the graph has no addition {missing[0]}; model.slim.onnx and model.slim.npz do not belong together, "
                f"run `sbs-deploy export`"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert all pairs, in graph order."""
        graph = model.graph
        operands = list(self._operands(graph))
        readers = {(node, index) for node, index, _, _ in operands}
        pairs: dict[tuple[ir.Value, Quantizer], ir.Value] = {}
        for node, index, quantizer, stem in operands:
            x = node.inputs[index]
            assert x is not None
            # Readers of one tensor with equal quantizers share a pair, so the tensor is quantized once.
            if (x, quantizer) not in pairs:
                alone = not x.is_graph_output() and all((use.node, use.idx) in readers for use in x.uses())
                pairs[x, quantizer] = self._quantized(graph, node, x, stem, quantizer, alone)
            node.replace_input_with(index, pairs[x, quantizer])
        for name, layer in self.layers.items():
            self._quantize_weight(graph, name, layer)
        RemoveUnusedNodesPass()(model)  # Clips that were merged into quantizers
        return ir.passes.PassResult(model, modified=bool(pairs))

    def _operands(self, graph: ir.Graph) -> Iterator[tuple[ir.Node, int, Quantizer, str]]:
        """(node, index of its input, quantizer, stem of new names) of everything that is quantized, in graph order."""
        calls = Counter[str]()
        for node in graph:
            name = self.by_weight.get(input_name(node, 1))
            if name is not None:
                # The exporter names the calls in torch's order; graphs from elsewhere have no such names.
                node.name = node.name if called(node.name or "") == name else call_name(name, calls[name])
                calls[name] += 1
                yield node, 0, self.layers[name].input, f"{node.name}.input"
            elif node.op_type == "Add" and (operands := self.adds.get(node.outputs[0].name or "")) is not None:
                for index, (quantizer, side) in enumerate(zip(operands, ("lhs", "rhs"), strict=True)):
                    yield node, index, quantizer, f"{node.outputs[0].name}.{side}"

    def ensures(self, model: ir.Model) -> None:
        """Check that no float weights are left, and that every layer reads dequantized integers."""
        for name in self.layers:
            weight = model.graph.initializers[f"{name}.weight"]
            assert weight.dtype == ir.DataType.INT8, name
            for dequantize in weight.consumers():
                (node,) = dequantize.outputs[0].consumers()
                producers = [value.producer() for value in node.inputs[:2] if value is not None]
                assert all(p is not None and p.op_type == "DequantizeLinear" for p in producers), name

    def _quantized(
        self, graph: ir.Graph, node: ir.Node, x: ir.Value, stem: str, quantizer: Quantizer, alone: bool
    ) -> ir.Value:
        """`x` quantized and dequantized, inserted before `node`; `alone` where only quantizers read `x`."""
        dialect = self.dialect
        step, zero = np.float32(quantizer.step), dialect.zero_point(quantizer.signed)
        low, high = quantizer.code_min, quantizer.code_max
        lowest, highest = dialect.container_range(quantizer.signed)
        before, bounds = clip_before(x)
        first, last = np.rint(bounds / step)
        low_implied = low <= lowest or low <= first or (low == 0 and not_negative(x))
        clipped = not (low_implied and (high >= highest or high >= last))
        if before is not None and alone and (clipped or dialect.clip == "integer"):
            x, clipped = before, True
        codes = np.clip([first, last], low, high)
        if dialect.clip == "integer" and lowest == 0 and tuple(codes) == (0, highest):
            # QuantizeLinear saturates there, without the Clip or Relu that would be one more step of the kernel.
            x, clipped = _before_relu(x) if alone else x, False
        scale = constant(graph, f"{stem}_scale", step)
        zero_point = constant(graph, f"{stem}_zero_point", dialect.container(zero))
        if clipped and dialect.clip == "float":
            x = self._clip(graph, node, x, stem, np.clip(bounds, np.float32(low) * step, np.float32(high) * step))
        x = insert(graph, node, "QuantizeLinear", [x, scale, zero_point], f"{stem}_quantized")
        if clipped and dialect.clip == "integer":
            x = self._clip(graph, node, x, stem, (codes + zero).astype(dialect.container))
        return insert(graph, node, "DequantizeLinear", [x, scale, zero_point], f"{stem}_dequantized")

    @staticmethod
    def _clip(graph: ir.Graph, node: ir.Node, x: ir.Value, stem: str, ends_2: npt.NDArray[Any]) -> ir.Value:
        bounds = [constant(graph, f"{stem}_{end}", value) for end, value in zip(("min", "max"), ends_2, strict=True)]
        return insert(graph, node, "Clip", [x, *bounds], f"{stem}_clipped")

    def _quantize_weight(self, graph: ir.Graph, name: str, layer: QuantizedLayer) -> None:
        """One set of codes and scales for all calls of a layer."""
        nodes, _ = _layer_nodes(graph, name)
        biases = [_bias_of(node, name) for node in nodes]
        step_a, scale_O = np.float32(layer.input.step), layer.scale_O
        if self.dialect.bias != "float":
            # A dead channel has a scale near 0: its bias would exceed int32, here or in the runtime's rounding.
            for bias_O in biases:
                if bias_O is not None:
                    scale_O = np.maximum(scale_O, np.abs(bias_O) / step_a / BIAS_LIMIT).astype(np.float32)
        del graph.initializers[f"{name}.weight"]
        op_type = nodes[0].op_type
        axis = 1 if op_type in ("MatMul", "ConvTranspose") else 0  # of the output channels
        parts = [
            constant(graph, f"{name}.weight", stored_codes(op_type, layer.codes)),
            constant(graph, f"{name}.weight_scale", scale_O),
            # Zeros are the default, but ONNX Runtime has an integer Gemm only with explicit zero-points.
            constant(graph, f"{name}.weight_zero_point", np.zeros(len(scale_O), np.int8)),
        ]
        rounded, step_O = self.dialect.bias == "rounded", step_a * scale_O
        for node, bias_O in zip(nodes, biases, strict=True):
            # A pair of its own for every call, as kernels are fused from such pairs.
            weight = insert(graph, node, "DequantizeLinear", parts, f"{node.name}.weight_dequantized", axis=axis)
            node.replace_input_with(1, weight)
            if bias_O is not None and (rounded or (self.dialect.bias == "int32" and _on_grid(bias_O, step_O))):
                self._quantize_bias(graph, node, node.name or name, bias_O, step_O)

    @staticmethod
    def _quantize_bias(
        graph: ir.Graph, node: ir.Node, name: str, bias_O: npt.NDArray[np.float32], step_O: npt.NDArray[np.float32]
    ) -> None:
        old = node.inputs[2]
        parts = [
            constant(graph, f"{name}.bias_codes", np.rint(bias_O / step_O).astype(np.int32)),
            constant(graph, f"{name}.bias_scale", step_O),
        ]
        node.replace_input_with(2, insert(graph, node, "DequantizeLinear", parts, f"{name}.bias_dequantized", axis=0))
        if old is not None and old.name is not None and not old.uses():
            del graph.initializers[old.name]


def stored_codes(op_type: str, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The codes, or values, of a layer, output channels first, in the layout of an operator of this type; or back."""
    return np.ascontiguousarray(codes.swapaxes(0, 1)) if op_type in ("MatMul", "ConvTranspose") else codes


def _layer_nodes(graph: ir.Graph, name: str) -> tuple[list[ir.Node], ir.Value]:
    """The nodes that read a layer's weights, all of one kind, and the weights."""
    weight = graph.initializers.get(f"{name}.weight")
    if weight is None:
        raise SbsError(f"layer {name}: the graph has no {name}.weight; make it again with `sbs-deploy export`")
    uses = list(weight.uses())
    kinds = {use.node.op_type for use in uses if use.idx == 1}
    if len(kinds) != 1 or not kinds.issubset(QUANTIZED_OPS) or any(use.idx != 1 for use in uses):
        readers = ", ".join(use.node.op_type for use in uses) or "nothing"
        raise SbsError(
            f"layer {name}: its weights are read by {readers}, not by one kind of {', '.join(QUANTIZED_OPS)} alone; "
            f"report it"
        )
    return [use.node for use in uses], weight


def _bias_of(node: ir.Node, name: str) -> npt.NDArray[np.float32] | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    value = ir.convenience.get_const_tensor(bias)
    if value is None:
        raise SbsError(f"layer {name}: its bias is computed, not constant; leave it in float")
    return value.numpy().astype(np.float32)


def _before_relu(x: ir.Value) -> ir.Value:
    """The input of the Relu that writes `x`; `x` if none does."""
    node = x.producer()
    return node.inputs[0] or x if node is not None and node.op_type == "Relu" else x


def _on_grid(bias_O: npt.NDArray[np.float32], step_O: npt.NDArray[np.float32]) -> bool:
    """Whether every bias is a whole number of accumulator steps, up to float32 rounding."""
    steps_O = bias_O.astype(np.float64) / step_O
    return bool(np.all(np.abs(steps_O - np.rint(steps_O)) <= 1e-2 + 1e-6 * np.abs(steps_O)))
