"""One quantized operator with weights in every form that a graph can give them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.sbs_deploy.lint.nets import FLOAT, Net, X

Producer = Literal["initializer", "Constant", "Identity", "Transpose", "Transpose codes", "Reshape"]
SHAPES: dict[str, tuple[int, ...]] = {
    "Conv": (16, 3, 3, 3),
    "Conv square": (16, 16, 1, 1),
    "ConvGroup": (16, 4, 3, 3),
    "Depthwise": (16, 1, 3, 3),
    "ConvTranspose": (16, 8, 2, 2),
    "ConvTranspose square": (16, 16, 2, 2),
    "Gemm": (16, 8),
    "Gemm square": (16, 16),
    "GemmT": (8, 16),
    "GemmT square": (16, 16),
    "MatMul": (16, 8),
    "MatMul square": (16, 16),
}
"""Of the weights, as the operator reads them."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the graph is made of."""

    operator: str = "Conv"
    scales: Literal["scalar", "one", "axis", "blocked"] = "axis"
    axis: int = 0
    """Of the operator's weights, along which the scales run."""
    producer: Producer = "initializer"
    bias: Literal["none", "small", "int32", "coarse int32", "dead", "large"] = "none"
    """int32: dequantized; coarse: in other steps than those of the accumulator. dead: of a channel whose weights are 0
    and whose scale is the smallest. large: beyond int32 in those steps."""
    unsigned: bool = False
    """Whether activations are uint8 with zero-point 128."""
    behind: Literal["Q", "float", "Relu", "full Relu", "two readers", "output"] = "Q"
    """What reads the result."""

    @property
    def kind(self) -> str:
        return self.operator.split()[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.operator]

    @property
    def outputs(self) -> int:
        """Axis of the weights' output channels."""
        return {"Conv": 0, "ConvGroup": 0, "Depthwise": 0, "GemmT": 0}.get(self.kind, 1)


def model_of(spec: Spec) -> onnx.ModelProto:
    """Q/DQ - the operator, its weights dequantized - Q/DQ."""
    made, rng = Net(), np.random.default_rng(0)
    shape, outputs = spec.shape, spec.outputs
    codes = rng.integers(-60, 61, shape)
    count = shape[spec.axis]
    scale: Any = np.geomspace(0.002, 0.05, count)
    if spec.scales == "scalar":
        scale = np.float64(0.01)
    elif spec.scales == "one":
        scale = np.full(1, 0.01)
    elif spec.scales == "blocked":
        dims = list(shape)
        dims[spec.axis] = max(1, count // 4)
        scale = rng.uniform(0.005, 0.03, dims)
    if spec.bias == "dead":
        codes[(slice(None),) * outputs + (0,)] = 0
        if spec.scales == "axis" and spec.axis == outputs:
            scale[0] = 1e-8
        else:
            codes[:] = 0
            scale = np.full_like(scale, 1e-8)
    quantizer = {"dtype": np.uint8, "zero": 128} if spec.unsigned else {}
    x = made.pair(X, "in", **quantizer)
    inputs = [x, weights_of(made, spec, codes, scale)]
    width = shape[outputs]
    if spec.bias != "none":
        value = 1.0 if spec.bias == "dead" else 0.5 if spec.bias == "small" else 3e9 * 0.04 * float(np.max(scale))
        if spec.bias == "coarse int32":
            made.constant("b.codes", np.rint(np.linspace(-90, 90, width)), np.int32)
            inputs.append(made.node("DequantizeLinear", ["b.codes", made.constant("b.scale", 0.02)], "bias"))
        elif spec.bias == "int32":
            step = 0.04 * np.broadcast_to(scale, width if scale.size in (1, width) else scale.shape).reshape(-1)[:width]
            step = np.resize(step, width)
            made.constant("b.codes", np.rint(0.5 / step), np.int32)
            inputs.append(made.node("DequantizeLinear", ["b.codes", made.constant("b.scale", step)], "bias", axis=0))
        else:
            inputs.append(made.constant("bias", np.full(width, value)))
    if spec.kind in ("Gemm", "GemmT"):
        out = made.node("Gemm", inputs, "out", transB=int(spec.kind == "GemmT"))
    elif spec.kind == "MatMul":
        out = made.node("MatMul", inputs[:2], "out")
        out = made.node("Add", [out, inputs[2]], "sum") if len(inputs) > 2 else out
    elif spec.kind == "ConvTranspose":
        out = made.node("ConvTranspose", inputs, "out", strides=[2, 2])
    else:
        group = {"ConvGroup": 4, "Depthwise": 16}.get(spec.kind, 1)
        out = made.node("Conv", inputs, "out", group=group)
    read, out = out, made.node("Relu", [out], "relu") if "Relu" in spec.behind else out
    if spec.behind != "float":
        end = {"dtype": np.uint8, "zero": 0} if spec.behind == "full Relu" and spec.unsigned else quantizer
        out = made.pair(out, "end", **end, scale=0.06)
    if spec.behind == "two readers":
        out = made.node("Add", [out, made.node("Sigmoid", [read], "other")], "both")
    rank = len(shape)
    channels = shape[0] if spec.kind in ("ConvTranspose", "Gemm", "MatMul") else shape[1]
    channels *= {"ConvGroup": 4, "Depthwise": 16}.get(spec.kind, 1)
    model = made.model(out, shape=("N", channels, 6, 6)[:rank])
    if spec.behind == "output":
        model.graph.output.append(helper.make_tensor_value_info(read, FLOAT, [f"read{i}" for i in range(rank)]))
    return model


def weights_of(made: Net, spec: Spec, codes: np.ndarray, scale: np.ndarray) -> str:
    """The dequantized weights, made as `spec.producer` says."""
    rank, axis = codes.ndim, spec.axis
    turned = spec.producer in ("Transpose", "Transpose codes")
    order = [*range(2, rank), 1, 0] if turned else list(range(rank))
    back = [int(i) for i in np.argsort(order)]
    stored = codes.transpose(order) if turned else codes
    if spec.producer == "Transpose":
        axis = order.index(axis)
        scale = scale.transpose(order) if scale.ndim == rank else scale
    parts = {"w.codes": (stored, np.int8), "w.scale": (scale, np.float32), "w.zero": (np.zeros_like(scale), np.int8)}
    names = []
    for name, (value, dtype) in parts.items():
        array = np.asarray(value, dtype)
        if spec.producer == "Constant":
            made.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            made.constant(name, array, dtype)
        names.append(made.node("Identity", [name], f"{name}.same") if spec.producer == "Identity" else name)
    if spec.producer == "Transpose codes":
        names[0] = made.node("Transpose", [names[0]], "w.turned", perm=back)
    attributes: dict[str, Any] = {} if spec.scales in ("scalar",) else {"axis": axis}
    if spec.scales == "blocked":
        attributes["block_size"] = -(-codes.shape[spec.axis] // max(1, codes.shape[spec.axis] // 4))
    if spec.producer == "Reshape":
        flat = made.node("DequantizeLinear", names, "w.flat", **attributes)
        return made.node("Reshape", [flat, made.constant("w.shape", codes.shape, np.int64)], "w.dq")
    out = made.node("DequantizeLinear", names, "w.dq", **attributes)
    if spec.producer == "Transpose":
        out = made.node("Transpose", [out], "w.back", perm=back)
    return made.node("Identity", [out], "w.dq.same") if spec.producer == "Identity" else out
