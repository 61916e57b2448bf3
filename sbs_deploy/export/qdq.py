"""Quantize/dequantize pairs into the slim float graph: one pass, two dialects.

The pass turns   x -> Conv(W, b)   into

    x -> [Clip] -> QuantizeLinear -> [Clip] -> DequantizeLinear -> Conv(DequantizeLinear(codes), b)

for every quantized layer. What a target wants of the container, of grids smaller than it and of the bias is a `Dialect`.
Layers are matched by the name of their weights, which the exporter keeps. No torch here: it runs on a device.

Shapes: codes_OIHW or codes_OI; scale_O one weight scale an output channel; bias_O.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

OPSET = 21
INPUT = "input"
OUTPUT = "logits"
PLAN_KEY = "sbs.plan_sha256"
"""Metadata of a quantized graph: the plan it was made from."""
DIALECT_KEY = "sbs.dialect"

BIAS_LIMIT = 2**30
"""Largest |int32 bias|: leaves room for the products it is added to."""
_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax")
_KEEPS_SIGN = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Identity", "Dropout")


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A convolution or linear layer in integers: its weights are `codes * scale_O`, its input `code * step_a`."""

    codes: npt.NDArray[np.int8]
    """OIHW or OI; BatchNorm's sign is in them, its magnitude in the scale."""
    scale_O: npt.NDArray[np.float32]
    step_a: float
    code_min: int
    """Of the input."""
    code_max: int
    signed: bool
    """Whether the input takes negative values."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one family of targets wants Q/DQ to be written."""

    name: str
    container: type[np.int8] | type[np.uint8]
    """Type of the activation codes."""
    zero_point_signed: int
    """Zero-point where the input takes negative values; 0 elsewhere."""
    clip: Literal["float", "integer"]
    """Where a grid smaller than the container saturates: before QuantizeLinear, or behind it on the codes."""
    bias: Literal["float", "int32"]
    """int32: on the accumulator's grid `step_a * scale_O`, where integer kernels add it."""

    def zero_point(self, signed: bool) -> int:
        """Zero-point of an input."""
        return self.zero_point_signed if signed else 0

    def container_range(self, signed: bool) -> tuple[int, int]:
        """Codes the container itself can hold, relative to the zero-point."""
        info = np.iinfo(self.container)
        return int(info.min) - self.zero_point(signed), int(info.max) - self.zero_point(signed)


def save_codes(layers: Mapping[str, QuantizedLayer], path: Path) -> None:
    """Write model.slim.npz atomically: `NAME/codes`, `NAME/scale`, `NAME/step_a`, `NAME/range_a`, `NAME/signed_a`."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, layer in layers.items():
        arrays[f"{name}/codes"] = layer.codes
        arrays[f"{name}/scale"] = layer.scale_O
        arrays[f"{name}/step_a"] = np.asarray(layer.step_a, np.float32)
        arrays[f"{name}/range_a"] = np.asarray([layer.code_min, layer.code_max])
        arrays[f"{name}/signed_a"] = np.asarray(layer.signed)
    save_arrays(arrays, path)


def load_codes(path: Path) -> dict[str, QuantizedLayer]:
    """Read model.slim.npz; SbsError if it is missing or damaged."""
    arrays = load_arrays(path)
    try:
        return {
            name: QuantizedLayer(
                codes=arrays[f"{name}/codes"],
                scale_O=arrays[f"{name}/scale"],
                step_a=float(arrays[f"{name}/step_a"]),
                code_min=int(arrays[f"{name}/range_a"][0]),
                code_max=int(arrays[f"{name}/range_a"][1]),
                signed=bool(arrays[f"{name}/signed_a"]),
            )
            for name in (key.removesuffix("/codes") for key in arrays if key.endswith("/codes"))
        }
    except KeyError as error:
        raise SbsError(f"{path} lacks {error}; make it again with `sbs-deploy export`") from error


def save_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], path: Path) -> None:
    """Write a compressed npz atomically."""
    with rundir.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Everything in an npz file; SbsError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError as error:
        raise SbsError(f"{path} is missing; make it with `sbs-deploy export`") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SbsError(f"{path} is damaged ({error}); make it again with `sbs-deploy export`") from error


def quantized_onnx(
    slim: onnx.ModelProto, layers: Mapping[str, QuantizedLayer], dialect: Dialect, *, plan_sha256: str
) -> onnx.ModelProto:
    """The slim float graph with Q/DQ for `layers`, checked.

    Raises:
        SbsError: a layer's weights are not in the graph, or are not those of a convolution or linear layer.
    """
    model = ir.from_proto(slim)
    InsertQDQ(layers, dialect)(model)
    model.metadata_props.update({PLAN_KEY: plan_sha256, DIALECT_KEY: dialect.name})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


class InsertQDQ(ir.passes.InPlacePass):
    """Quantize the inputs and weights of the named layers, whose weights are called `NAME.weight`."""

    def __init__(self, layers: Mapping[str, QuantizedLayer], dialect: Dialect) -> None:
        super().__init__()
        self.layers = layers
        self.dialect = dialect

    def requires(self, model: ir.Model) -> None:
        """Opset 21, and for every layer one Conv or Gemm that reads float weights of the codes' shape."""
        version = model.opset_imports.get("")
        if version != OPSET:
            raise SbsError(f"the graph has opset {version}, not {OPSET}; make it again with `sbs-deploy export`")
        for name, layer in self.layers.items():
            node, weight = _layer_node(model.graph, name)
            shape = list(weight.shape.numpy()) if weight.shape is not None else []
            if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
                raise SbsError(f"layer {name}: Gemm with untransposed weights is not supported; leave it in float")
            if weight.dtype != ir.DataType.FLOAT or shape != list(layer.codes.shape):
                raise SbsError(
                    f"layer {name}: weights are {weight.dtype} {shape}, expected FLOAT {list(layer.codes.shape)}; "
                    f"model.slim.onnx and model.slim.npz do not belong together, run `sbs-deploy export`"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert, in graph order."""
        pairs: dict[tuple[ir.Value, float, int, int, bool], ir.Value] = {}
        by_weight = {f"{name}.weight": name for name in self.layers}
        for node in list(model.graph):
            name = by_weight.get(_input_name(node, 1))
            if name is None:
                continue
            layer, x = self.layers[name], node.inputs[0]
            assert x is not None
            # Layers that read one tensor with one quantizer share its pair, so it is quantized once.
            key = (x, layer.step_a, layer.code_min, layer.code_max, layer.signed)
            if key not in pairs:
                pairs[key] = self._quantized_input(model.graph, node, x, name, layer)
            node.name = name
            node.replace_input_with(0, pairs[key])
            self._quantize_weight(model.graph, node, name, layer)
        return ir.passes.PassResult(model, modified=bool(pairs))

    def ensures(self, model: ir.Model) -> None:
        """No float weights are left, and every layer reads dequantized integers."""
        for name in self.layers:
            weight = model.graph.initializers[f"{name}.weight"]
            assert weight.dtype == ir.DataType.INT8, name
            (dequantize,) = weight.consumers()
            (node,) = dequantize.outputs[0].consumers()
            producers = [value.producer() for value in node.inputs[:2] if value is not None]
            assert all(p is not None and p.op_type == "DequantizeLinear" for p in producers), name

    def _quantized_input(
        self, graph: ir.Graph, node: ir.Node, x: ir.Value, name: str, layer: QuantizedLayer
    ) -> ir.Value:
        """`x` quantized and dequantized, inserted before `node`."""
        dialect, stem = self.dialect, f"{name}.input"
        step, zero = np.float32(layer.step_a), dialect.zero_point(layer.signed)
        lowest, highest = dialect.container_range(layer.signed)
        lower_implied = layer.code_min <= lowest or (layer.code_min == 0 and _not_negative(x))
        clipped = not (lower_implied and layer.code_max >= highest)
        scale = _constant(graph, f"{stem}_scale", step)
        zero_point = _constant(graph, f"{stem}_zero_point", dialect.container(zero))
        if clipped and dialect.clip == "float":
            ends = (np.float32(layer.code_min) * step, np.float32(layer.code_max) * step)
            x = self._clip(graph, node, x, stem, ends)
        x = _insert(graph, node, "QuantizeLinear", [x, scale, zero_point], f"{stem}_quantized")
        # Codes below 0 cannot come out of an unsigned container, whatever x is.
        if clipped and dialect.clip == "integer":
            codes = (dialect.container(layer.code_min + zero), dialect.container(layer.code_max + zero))
            x = self._clip(graph, node, x, stem, codes)
        return _insert(graph, node, "DequantizeLinear", [x, scale, zero_point], f"{stem}_dequantized")

    @staticmethod
    def _clip(graph: ir.Graph, node: ir.Node, x: ir.Value, stem: str, ends: tuple[np.generic, np.generic]) -> ir.Value:
        bounds = [_constant(graph, f"{stem}_{end}", value) for end, value in zip(("min", "max"), ends, strict=True)]
        return _insert(graph, node, "Clip", [x, *bounds], f"{stem}_clipped")

    def _quantize_weight(self, graph: ir.Graph, node: ir.Node, name: str, layer: QuantizedLayer) -> None:
        bias_O = _bias_of(node, name)
        scale_O = layer.scale_O
        if bias_O is not None and self.dialect.bias == "int32":
            # A dead channel has a scale near 0; its bias would leave int32.
            scale_O = np.maximum(scale_O, np.abs(bias_O) / np.float32(layer.step_a) / BIAS_LIMIT).astype(np.float32)
        del graph.initializers[f"{name}.weight"]
        parts = [
            _constant(graph, f"{name}.weight", layer.codes),
            _constant(graph, f"{name}.weight_scale", scale_O),
            # All zero, which is the default; ONNX Runtime has an integer Gemm only where it is written out.
            _constant(graph, f"{name}.weight_zero_point", np.zeros(len(scale_O), np.int8)),
        ]
        weight = _insert(graph, node, "DequantizeLinear", parts, f"{name}.weight_dequantized", axis=0)
        node.replace_input_with(1, weight)
        if bias_O is None or self.dialect.bias == "float":
            return
        old = node.inputs[2]
        step_O = np.float32(layer.step_a) * scale_O
        accumulator_O = np.rint(bias_O / step_O).astype(np.int32)
        parts = [
            _constant(graph, f"{name}.bias_codes", accumulator_O),
            _constant(graph, f"{name}.bias_scale", step_O),
        ]
        node.replace_input_with(2, _insert(graph, node, "DequantizeLinear", parts, f"{name}.bias_dequantized", axis=0))
        if old is not None and old.name is not None and not old.uses():
            del graph.initializers[old.name]


def _layer_node(graph: ir.Graph, name: str) -> tuple[ir.Node, ir.Value]:
    weight = graph.initializers.get(f"{name}.weight")
    if weight is None:
        raise SbsError(f"layer {name}: the graph has no {name}.weight; make it again with `sbs-deploy export`")
    uses = list(weight.uses())
    if len(uses) != 1 or uses[0].idx != 1 or uses[0].node.op_type not in ("Conv", "Gemm"):
        readers = ", ".join(use.node.op_type for use in uses) or "nothing"
        raise SbsError(f"layer {name}: its weights are read by {readers}, not by one Conv or Gemm; leave it in float")
    return uses[0].node, weight


def _bias_of(node: ir.Node, name: str) -> npt.NDArray[np.float32] | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    value = ir.convenience.get_const_tensor(bias)
    if value is None:
        raise SbsError(f"layer {name}: its bias is computed, not constant; leave it in float")
    return value.numpy().astype(np.float32)


def _not_negative(x: ir.Value) -> bool:
    """Whether the graph shows that `x` has no negative values."""
    node = x.producer()
    while node is not None and node.op_type in _KEEPS_SIGN:
        first = node.inputs[0]
        node = first.producer() if first is not None else None
    return node is not None and node.op_type in _NOT_NEGATIVE


def _input_name(node: ir.Node, index: int) -> str:
    value = node.inputs[index] if len(node.inputs) > index else None
    return (value.name if value is not None else None) or ""


def _constant(graph: ir.Graph, name: str, value: npt.NDArray[np.generic] | np.generic) -> ir.Value:
    tensor = ir.tensor(np.asarray(value), name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant


def _insert(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value], output: str, **attributes: int
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=output, outputs=[ir.Value(name=output)])
    graph.insert_before(before, node)
    return node.outputs[0]
