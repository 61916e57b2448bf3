"""Networks to time on a GPU where no trained run is at hand: a plain stack of 3x3 convolutions, float and quantized.

Weights are random: latency does not depend on them. With `--run DIR` the parts of gpu.sh take a real run's files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (3, 64, 64)
CHANNELS = (64, 64, 128, 128, 256, 256)


def write_models(folder: Path) -> tuple[Path, Path]:
    """Write model.slim.onnx (float) and model.trt.onnx (int8 Q/DQ) and return their paths."""
    paths = folder / "model.slim.onnx", folder / "model.trt.onnx"
    for path, quantized in zip(paths, (False, True), strict=True):
        model = stack(quantized)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    return paths


def stack(quantized: bool) -> onnx.ModelProto:
    """Convolution and ReLU, six times, halving the size when the channels double; pooling and a linear layer."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], []

    def constant(name: str, value: npt.ArrayLike) -> str:
        initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    x, before = "input", IMAGE[0]
    for index, channels in enumerate(CHANNELS):
        name = f"conv{index}"
        codes = rng.integers(-120, 121, (channels, before, 3, 3)).astype(np.int8)
        scale = np.full(channels, 1 / (120 * 3 * np.sqrt(before)), np.float32)
        if quantized:
            pair = [constant(f"{name}.x_scale", np.float32(1 / 40)), constant(f"{name}.x_zero", np.int8(0))]
            x = node("DequantizeLinear", [node("QuantizeLinear", [x, *pair], f"{name}.Q"), *pair], f"{name}.DQ")
            zeros = constant(f"{name}.w_zero", np.zeros(channels, np.int8))
            inputs = [constant(f"{name}.weight", codes), constant(f"{name}.w_scale", scale), zeros]
            weight = node("DequantizeLinear", inputs, f"{name}.W", axis=0)
        else:
            weight = constant(f"{name}.weight", codes * scale[:, None, None, None])
        bias = constant(f"{name}.bias", rng.normal(0, 0.1, channels).astype(np.float32))
        stride = 2 if channels > before and index else 1
        x = node("Conv", [x, weight, bias], name, pads=[1] * 4, strides=[stride] * 2)
        x, before = node("Relu", [x], f"{name}.relu"), channels
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "flatten")
    head = constant("fc.weight", rng.normal(0, 0.1, (before, 10)).astype(np.float32))
    nodes.append(helper.make_node("MatMul", [x, head], ["logits"], name="fc"))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *IMAGE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
