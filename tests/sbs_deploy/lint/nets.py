"""Two quantized convolutions and what stands between them, in every variation that a rule looks for."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16
SIZE = 8
X, Y = "x", "y"


class Net:
    """Nodes and initializers of a graph in the making."""

    def __init__(self, *, opset: int = 21, real: Any = np.float32) -> None:
        self.opset, self.real = opset, np.dtype(real)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.domains: set[str] = set()

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        if not any(t.name == name for t in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype or self.real), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.domains.add(domain)
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_{op}", domain=domain, **attributes))
        return output

    def pair(
        self,
        x: str,
        stem: str,
        *,
        dtype: Any = np.int8,
        zero: int = 0,
        scale: Any = 0.04,
        clip: tuple[int, int] | None = None,
        **attributes: Any,
    ) -> str:
        """Quantize, perhaps clip the codes, dequantize."""
        scales = self.constant(f"{stem}.scale", scale)
        zeros = self.constant(f"{stem}.zero", np.full(np.shape(scale), zero), dtype)
        x = self.node("QuantizeLinear", [x, scales, zeros], f"{stem}.q", **attributes)
        if clip is not None:
            ends = [self.constant(f"{stem}.{i}", end, dtype) for i, end in enumerate(clip)]
            x = self.node("Clip", [x, *ends], f"{stem}.clipped")
        return self.node("DequantizeLinear", [x, scales, zeros], f"{stem}.dq", **attributes)

    def weight(
        self,
        stem: str,
        codes: np.ndarray,
        *,
        dtype: Any = np.int8,
        zero: int = 0,
        scale: Any = None,
        axis: int | None = 0,
        **attributes: Any,
    ) -> str:
        """Dequantized codes; `zero` is added to those given."""
        scale = np.linspace(0.01, 0.02, codes.shape[axis or 0]) if scale is None else np.asarray(scale)
        parts = [
            self.constant(f"{stem}.codes", codes + zero, dtype),
            self.constant(f"{stem}.scale", scale),
            self.constant(f"{stem}.zero", np.full(scale.shape, zero), dtype),
        ]
        if axis is not None:
            attributes["axis"] = axis
        return self.node("DequantizeLinear", parts, f"{stem}.dq", **attributes)

    def model(self, out: str, *, x_type: Any = None, shape: tuple[Any, ...] = (), y: Any = None) -> onnx.ModelProto:
        """The model that computes `out`."""
        kind = helper.np_dtype_to_tensor_dtype
        self.nodes.append(helper.make_node("Identity", [out], [Y], name="end"))
        dims = shape or ("N", CHANNELS, SIZE, SIZE)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(X, kind(np.dtype(x_type or self.real)), dims)],
            [helper.make_tensor_value_info(Y, kind(np.dtype(y or self.real)), [f"y{i}" for i in range(len(dims))])],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(self.domains - {""})]
        return helper.make_model(graph, opset_imports=opsets, ir_version=13 if self.opset >= 25 else 10)


def codes(out: int = CHANNELS, inner: int = CHANNELS, kernel: int = 1, largest: int = 7) -> np.ndarray:
    """Weights as integers."""
    return np.random.default_rng(0).integers(-largest, largest + 1, (out, inner, kernel, kernel))


def net(
    *,
    x: dict[str, Any] | None = None,
    w: dict[str, Any] | None = None,
    weights: np.ndarray | None = None,
    second: np.ndarray | None = None,
    bias: Any = None,
    between: Any = None,
    middle: dict[str, Any] | None = None,
    opset: int = 21,
    real: Any = np.float32,
    group: int = 1,
    **io: Any,
) -> onnx.ModelProto:
    """Q/DQ - conv1 - bias - `between` (adds nodes to a Net) - Q/DQ - conv2: int8, symmetric, unless told otherwise."""
    made = Net(opset=opset, real=real)
    first = made.pair(X, "in", **(x or {}))
    weights = codes() if weights is None else weights
    inputs = [first, made.weight("w1", weights, **(w or {}))]
    if bias is not None:
        inputs.append(bias(made))
    out = made.node("Conv", inputs, "conv1", group=group)
    if between is not None:
        out = between(made, out)
    out = made.pair(out, "mid", **(middle or {}))
    second = codes(inner=len(weights)) if second is None else second
    last = made.weight("w2", second, axis=None, scale=0.01)
    return made.model(made.node("Conv", [out, last], "conv2"), **io)


def int32_bias(made: Net) -> str:
    steps = np.arange(CHANNELS) * 50 - 400
    parts = [made.constant("b.codes", steps, np.int32), made.constant("b.scale", np.full(CHANNELS, 0.0004))]
    return made.node("DequantizeLinear", parts, "b.dq", axis=0)


def float_bias(value: Any = 0.5, dtype: Any = None) -> Any:
    return lambda made: made.constant("b", np.full(CHANNELS, value), dtype)


def op(kind: str, **attributes: Any) -> Any:
    """One more operator of one input."""
    return lambda made, out: made.node(kind, [out], f"{kind.lower()}1", **attributes)


def clip(low: float, high: float) -> Any:
    return lambda made, out: made.node("Clip", [out, made.constant("low", low), made.constant("high", high)], "clip1")


def add(lhs: bool, rhs: bool, **quantizer: Any) -> Any:
    """A residual connection around conv1; its operands quantized or not."""

    def between(made: Net, out: str) -> str:
        out = made.pair(out, "lhs", **quantizer) if lhs else out
        return made.node("Add", [out, "in.dq" if rhs else made.node("Relu", [X], "skip")], "add1")

    return between


BF16, INT4, UINT4, INT2 = ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2
FP8, FP8_WIDE = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
FLOAT = TensorProto.FLOAT
