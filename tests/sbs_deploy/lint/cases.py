"""For every rule a graph in which it finds something and one, as near as can be, in which it does not."""

from typing import Any

import numpy as np
import onnx

from tests.sbs_deploy.lint.generate import Spec, model_of
from tests.sbs_deploy.lint.nets import (
    BF16,
    CHANNELS,
    FP8,
    INT2,
    INT4,
    UINT4,
    Net,
    X,
    add,
    clip,
    codes,
    float_bias,
    int32_bias,
    net,
    op,
)

UINT8 = {"dtype": np.uint8}
U128 = {"dtype": np.uint8, "zero": 128}
HALF = {"real": np.float16}


def scales(first: float) -> dict[str, Any]:
    return {"scale": [first, *[0.01] * (CHANNELS - 1)]}


def single(*nodes: tuple[str, list[str]], x_type: Any = np.float32, **domains: Any) -> onnx.ModelProto:
    """A graph of unquantized operators."""
    made = Net()
    made.constant("w", codes(largest=1).astype(np.float32))
    for index, (kind, inputs) in enumerate(nodes):
        out = made.node(kind, inputs, f"t{index}", **domains)
    return made.model(out, x_type=x_type)


def qlinear() -> onnx.ModelProto:
    def between(made: Net, out: str) -> str:
        first = made.node("QuantizeLinear", [out, "in.scale", "in.zero"], "c")
        scale, zero = "in.scale", "in.zero"
        made.constant("qw", codes(), np.int8)
        second = made.node("QLinearConv", [first, scale, zero, "qw", scale, zero, scale, zero], "c2")
        return made.node("DequantizeLinear", [second, scale, zero], "d")

    return net(between=between)


def dynamic() -> onnx.ModelProto:
    made = Net()
    made.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [X], ["d.q", "d.scale", "d.zero"], name="d"))
    return made.model(made.node("DequantizeLinear", ["d.q", "d.scale", "d.zero"], "d.dq"))


def implicit_uint8() -> onnx.ModelProto:
    """QuantizeLinear without a zero-point makes uint8."""
    model = net()
    for node in model.graph.node:
        if node.input[1:2] == ["in.scale"]:
            del node.input[2]
    return model


def half_quantized(side: str) -> onnx.ModelProto:
    made = Net()
    x = made.pair(X, "in") if side == "weights" else X
    w = made.constant("w", codes()) if side == "weights" else made.weight("w1", codes())
    out = made.pair(made.node("Conv", [x, w], "conv1"), "mid")
    return made.model(made.node("Conv", [out, made.weight("w2", codes())], "conv2"))


def branches(second_scale: float, **quantizer: Any) -> onnx.ModelProto:
    """One tensor quantized for each of two readers."""

    def between(made: Net, out: str) -> str:
        pairs = [
            made.pair(out, "one", **quantizer),
            made.pair(out, "two", scale=second_scale, **quantizer),
        ]
        results = [made.node("Conv", [pair, "w1.dq"], f"branch{i}") for i, pair in enumerate(pairs)]
        return made.node("Concat", results, "both", axis=1)

    return net(between=between, second=codes(inner=2 * CHANNELS))


def again(scale: float) -> onnx.ModelProto:
    """Dequantized and quantized again."""
    return net(between=lambda made, out: made.pair(out, "one"), middle={"scale": scale})


def dead(scale: float, bias: float) -> onnx.ModelProto:
    """A dead channel, of which only the bias is left."""
    weights = codes()
    weights[0] = 0
    return net(weights=weights, w=scales(scale), bias=float_bias(bias), middle={"dtype": np.uint8, "zero": 128})


def grouped(channels: int, kind: str = "depthwise") -> onnx.ModelProto:
    inner, group = (1, channels) if kind == "depthwise" else (channels, 1)
    return net(weights=codes(channels, inner), group=group, shape=("N", channels, 8, 8))


def middle_channels(count: int) -> onnx.ModelProto:
    return net(weights=codes(count))


def of(**given: Any) -> onnx.ModelProto:
    """One operator of `generate`."""
    return model_of(Spec(**given))


def scale_form(form: str, value: float) -> onnx.ModelProto:
    """Weights whose scale is an attribute of a Constant."""
    model = of(operator="Gemm", scales="scalar")
    (held,) = (tensor for tensor in model.graph.initializer if tensor.name == "w.scale")
    model.graph.initializer.remove(held)
    written = {form: [value] if form.endswith("s") else value}
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w.scale"], **written))
    if form.endswith("s"):
        (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == "w.zero")
        zero.dims[:] = [1]
    return model


def read_with(**given: float) -> onnx.ModelProto:
    """An activation that is dequantized otherwise than it was quantized."""
    model = of()
    (node,) = (node for node in model.graph.node if node.output[0] == "in.dq")
    for place, (name, dtype) in enumerate((("scale", np.float32), ("zero", np.int8)), 1):
        if name in given:
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.asarray(given[name], dtype), f"other.{name}")
            )
            node.input[place] = f"other.{name}"
    return model


Case = tuple[str, str, onnx.ModelProto, onnx.ModelProto]


def cases() -> list[Case]:
    """(rule, target, a graph in which the rule finds something, one in which it does not)."""
    plain = net()
    per_channel = {"scale": np.full(CHANNELS, 0.04), "axis": 1}
    wide, padded = {"dtype": np.int16}, net(w={"dtype": INT4}, x=None)
    return [
        ("zero-point", "trt", net(x={"zero": 5}), plain),
        ("zero-point", "trt", net(x=U128), plain),
        ("zero-point", "trt", net(w={"zero": 3}), plain),
        ("uint8", "trt", net(middle=UINT8), plain),
        ("uint8", "trt", implicit_uint8(), plain),
        ("uint8", "trt", net(w=UINT8, weights=abs(codes())), plain),
        ("code-type", "trt", net(x=wide), plain),
        ("code-type", "trt", net(w=wide), plain),
        ("code-type", "trt", net(w={"dtype": UINT4}, weights=abs(codes())), plain),
        ("code-type", "trt", net(w={"dtype": INT2}, weights=codes(largest=1), opset=25), plain),
        ("code-type", "ort", net(x=wide), plain),
        ("code-type", "ort", padded, plain),
        ("int4", "trt", padded, plain),
        ("int4", "trt", net(x={"dtype": INT4}), plain),
        ("fp8", "trt", net(x={"dtype": FP8}, w={"dtype": FP8}), plain),
        ("fp8-mixed", "trt", net(x={"dtype": FP8}), net(x={"dtype": FP8}, w={"dtype": FP8})),
        ("scale", "trt", net(w=scales(0.0)), net(w=scales(1e-8))),
        ("scale", "trt", net(w=scales(-0.01)), plain),
        ("scale", "trt", net(w=scales(np.nan)), plain),
        ("scale", "trt", net(x={"scale": 0.0}), plain),
        ("scale", "ort", net(x={"scale": 0.0}), net(w=scales(0.0))),
        ("scale", "ort", net(w=scales(np.inf)), plain),
        ("scale-count", "both", net(w={"scale": np.full(CHANNELS - 1, 0.01)}), plain),
        ("per-channel-activation", "both", net(x=per_channel), plain),
        ("weight-axis", "trt", net(w={"axis": 1}), plain),
        ("weight-axis", "ort", net(w={"axis": 1}), plain),
        ("weight-axis", "ort", of(operator="Gemm square"), of(operator="Gemm square", axis=1)),
        ("weight-axis", "ort", of(operator="GemmT square", axis=1), of(operator="GemmT", axis=1)),
        ("weight-axis", "ort", of(operator="MatMul", behind="float"), of(operator="MatMul")),
        ("weight-axis", "ort", of(axis=1, producer="Transpose"), of(producer="Transpose")),
        ("weight-axis", "ort", of(scales="blocked", axis=3), of(operator="ConvTranspose")),
        ("blocked-scales", "trt", of(scales="blocked"), of(scales="blocked", axis=3)),
        ("blocked-scales", "trt", of(operator="Conv square", scales="blocked", axis=3), of(scales="blocked", axis=2)),
        ("blocked-scales", "trt", of(operator="GemmT", scales="blocked"), of(operator="Gemm", scales="blocked")),
        ("single-scale", "trt", of(scales="one", behind="float"), of(scales="one", behind="float", bias="small")),
        ("moved-codes", "trt", of(producer="Identity"), of(producer="Constant")),
        ("moved-codes", "trt", of(producer="Transpose codes"), of(producer="Transpose")),
        ("quantized-bias", "trt", net(bias=int32_bias), net(bias=float_bias())),
        ("bias-scale", "ort", of(operator="Gemm", axis=1, bias="coarse int32"), of(bias="coarse int32")),
        ("bias-overflow", "ort", of(operator="Gemm", axis=1, bias="dead"), of(operator="Gemm", bias="dead")),
        ("bias-overflow", "ort", of(operator="ConvTranspose", axis=1, bias="dead"), of(axis=1, bias="dead")),
        ("bias-overflow", "ort", of(operator="MatMul", axis=1, bias="dead"), of(bias="dead", behind="float")),
        ("scale", "trt", scale_form("value_float", 0.0), scale_form("value_float", 0.1)),
        ("scale", "trt", scale_form("value_floats", 0.0), scale_form("value_floats", 0.1)),
        ("scale", "trt", read_with(scale=0.0), read_with(scale=0.08)),
        ("zero-point", "trt", read_with(zero=5), read_with(zero=0)),
        ("bias-overflow", "ort", dead(1e-8, 1.0), dead(1e-8, 0.0)),
        ("qoperator", "trt", qlinear(), plain),
        ("qoperator", "trt", dynamic(), plain),
        ("half-quantized", "trt", half_quantized("weights"), plain),
        ("half-quantized", "trt", half_quantized("input"), plain),
        ("half-quantized", "ort", half_quantized("weights"), plain),
        ("half-quantized", "ort", half_quantized("input"), plain),
        ("residual", "trt", net(between=add(False, False)), net(between=add(False, True))),
        (
            "residual",
            "ort",
            net(between=add(False, True, **U128), x=U128),
            net(between=add(True, True, **U128), x=U128),
        ),
        ("float-island", "trt", net(between=op("Softmax", axis=1)), net(between=op("Sigmoid"))),
        ("float-island", "trt", net(between=op("LpNormalization")), net(between=op("MaxPool", kernel_shape=[2, 2]))),
        ("float-island", "ort", net(between=op("HardSwish")), net(between=op("Relu"), middle=UINT8)),
        ("opset-axis", "both", net(opset=12, w={"axis": None, "scale": np.full(CHANNELS, 0.01)}), net(opset=13)),
        ("opset-type", "ort", net(opset=18, **HALF), net(opset=19, **HALF)),
        ("opset-type", "ort", net(opset=20, x=wide), net(opset=21, x=wide)),
        ("opset-type", "ort", net(opset=20, w={"dtype": INT4}), net(opset=21, w={"dtype": INT4})),
        ("opset-type", "ort", net(opset=21, real=BF16), net(opset=22, real=BF16)),
        ("mixed-types", "trt", single(("Conv", [X, "w"]), x_type=np.float16), single(("Conv", [X, "w"]))),
        ("mixed-types", "trt", net(bias=float_bias(0.5, np.float16)), net(bias=float_bias())),
        ("domain", "trt", single(("QuickGelu", [X]), domain="com.microsoft"), single(("Relu", [X]))),
        (
            "domain",
            "trt",
            single(("Binarizer", [X]), domain="ai.onnx.ml"),
            single(("Gelu", [X]), domain="com.microsoft"),
        ),
        ("bf16", "ort", net(real=BF16, opset=22), plain),
        ("fp32", "trt", plain, net(**HALF)),
        ("fp16", "ort", net(**HALF), plain),
        ("blocked-fusion", "ort", net(between=op("Relu")), net(between=op("Relu"), middle=UINT8)),
        ("blocked-fusion", "ort", net(between=op("Relu"), middle=U128), net(between=op("Relu"), middle={"zero": -128})),
        ("blocked-fusion", "ort", net(between=clip(0, 6), middle=UINT8), net(between=clip(0, 10.2), middle=UINT8)),
        (
            *("blocked-fusion", "ort", net(between=clip(-0.28, 0.28))),
            net(middle={**U128, "clip": (121, 135)}),
        ),
        (
            *("float-output", "ort", net(between=op("GlobalAveragePool"))),
            net(between=lambda made, out: made.node("GlobalAveragePool", [made.pair(out, "pool")], "pooled")),
        ),
        ("int8-activation", "ort", net(middle={"clip": (-7, 7)}), net(middle={**U128, "clip": (121, 135)})),
        ("int8-activation", "ort", net(between=add(True, True)), net(between=add(True, True, **U128), x=U128)),
        ("float-output", "ort", branches(0.05, **U128), net(x=U128, middle=U128)),
        ("repeated-pair", "both", branches(0.04), branches(0.05)),
        ("repeated-pair", "both", again(0.04), again(0.05)),
        ("channels", "trt", middle_channels(24), middle_channels(32)),
        ("channels", "ort", middle_channels(18), middle_channels(20)),
        ("depthwise", "ort", grouped(18), grouped(20)),
        ("depthwise", "trt", grouped(16), grouped(16, "dense")),
        ("static-batch", "trt", net(shape=(1, CHANNELS, 8, 8)), plain),
        ("dynamic-axes", "trt", net(shape=("N", CHANNELS, "H", 8)), plain),
    ]
