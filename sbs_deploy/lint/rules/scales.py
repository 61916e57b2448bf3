"""Scales: their sign, their number, and biases quantized by them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import TensorProto

from sbs_deploy.lint.edit import float_bias, positive_scales, wider_scales
from sbs_deploy.lint.finding import Hit, Rule
from sbs_deploy.lint.graph import QUANTIZE, Graph, Layer, Quantized

ACCUMULATOR_MAX = 2.0**31
HEADROOM = 2.0**30
"""Largest |int32 bias| after a repair: leaves room for the products it is added to."""


def find_not_positive(graph: Graph) -> Iterator[Hit]:
    """Scales that are 0, negative or not a number."""
    for tensor in graph.quantized:
        if tensor.scale is not None and not np.all(tensor.scale.astype(np.float64) > 0):
            wrong = int(np.sum(~(tensor.scale.astype(np.float64) > 0)))
            fix = partial(positive_scales, graph, tensor) if _sign_is_mechanical(graph, tensor) else None
            detail = f"{wrong} of {tensor.scale.size}, smallest {float(np.min(tensor.scale)):g}"
            yield Hit(node=graph.label(tensor.head), detail=detail, fix=fix)


def find_division_by_zero(graph: Graph) -> Iterator[Hit]:
    """QuantizeLinear by 0, and scales that are not finite."""
    for tensor in graph.quantized:
        if tensor.scale is None:
            continue
        scale = tensor.scale.astype(np.float64)
        if not np.all(np.isfinite(scale)) or (tensor.head.op_type == QUANTIZE and np.any(scale == 0)):
            yield Hit(node=graph.label(tensor.head), detail=f"scale {float(scale.min()):g}")


def find_per_channel_activations(graph: Graph) -> Iterator[Hit]:
    """Activations with a scale for each channel."""
    for tensor in graph.quantized:
        if tensor.per_channel and not tensor.static:
            count = tensor.scale.size if tensor.scale is not None else 0
            yield Hit(node=graph.label(tensor.head), detail=f"{count} scales along axis {tensor.axis}")


def find_weight_axis(graph: Graph) -> Iterator[Hit]:
    """Weights of convolutions whose scales do not stand along the output channels."""
    for layer in graph.layers:
        expected = {"Conv": 0, "ConvTranspose": 1}.get(layer.node.op_type)
        if expected is None or layer.w is None or not layer.w.per_channel or graph.opset < 13:
            continue
        if layer.w.axis % len(layer.weight_shape) != expected:
            yield Hit(node=graph.label(layer.node), detail=f"axis {layer.w.axis}, not {expected}")


def find_quantized_bias(graph: Graph) -> Iterator[Hit]:
    """Constants dequantized from int32."""
    for tensor in graph.quantized:
        if tensor.code_type == TensorProto.INT32:
            mechanical = graph.constant(tensor.codes) is not None and tensor.scale is not None and not tensor.shifted
            fix = partial(float_bias, graph, tensor.head) if mechanical else None
            yield Hit(node=graph.label(tensor.head), fix=fix)


def find_bias_overflow(graph: Graph) -> Iterator[Hit]:
    """Convolutions whose float bias is beyond int32 in steps of their accumulator."""
    for layer in graph.layers:
        needed = _needed_scale(graph, layer)
        if needed is None or layer.w is None or layer.w.scale is None:
            continue
        scale = layer.w.scale.astype(np.float64).reshape(-1)
        beyond = scale * ACCUMULATOR_MAX < needed
        if np.any(beyond):
            codes = graph.constant(layer.w.codes)
            dead = codes is not None and not np.any(codes.reshape(len(codes), -1)[beyond] if scale.size > 1 else codes)
            at_least = np.where(beyond, needed / HEADROOM, 0.0)
            fix = partial(wider_scales, graph, layer.w, at_least) if dead and scale.size > 1 else None
            yield Hit(node=graph.label(layer.node), detail=f"{int(beyond.sum())} of {beyond.size} channels", fix=fix)


def _sign_is_mechanical(graph: Graph, tensor: Quantized) -> bool:
    codes = graph.constant(tensor.codes)
    if codes is None or tensor.scale is None or tensor.code_type != TensorProto.INT8 or tensor.shifted:
        return False
    # Without -128 every code has an opposite.
    return bool(np.all(np.isfinite(tensor.scale))) and (bool(np.all(tensor.scale >= 0)) or int(codes.min()) > -128)


def _needed_scale(graph: Graph, layer: Layer) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Of every output channel |bias| / input scale, the least that `weight scale * 2**31` must reach."""
    node = layer.node
    if node.op_type != "Conv" or not layer.quantized or len(node.input) < 3:
        return None
    bias = graph.constant(node.input[2])
    if bias is None or layer.x is None or layer.x.scale is None or layer.x.scale.size != 1:
        return None
    step = float(layer.x.scale.reshape(-1)[0])
    return np.abs(bias.astype(np.float64)).reshape(-1) / step if step > 0 else None


RULES = (
    Rule(
        id="scale",
        targets=("trt",),
        severity="error",
        effect="TensorRT refuses it: `Scale coefficients must all be positive`",
        remedy="clamp the scales of dead channels at 1e-8; turn the sign of codes, not of scales",
        find=find_not_positive,
    ),
    Rule(
        id="scale",
        targets=("ort",),
        severity="error",
        effect="divides by zero or multiplies by infinity: the codes mean nothing",
        remedy="calibrate this tensor again: its range is empty or damaged",
        find=find_division_by_zero,
    ),
    Rule(
        id="per-channel-activation",
        targets=("trt", "ort"),
        severity="warning",
        effect="there is no integer kernel for it: the layer that reads it runs in float",
        remedy="quantize activations per tensor, and only weights per channel",
        find=find_per_channel_activations,
    ),
    Rule(
        id="weight-axis",
        targets=("trt",),
        severity="warning",
        effect="there is no integer kernel for it: the layer runs in float",
        remedy="quantize the weights along their output channels: axis 0 of Conv, axis 1 of ConvTranspose",
        find=find_weight_axis,
    ),
    Rule(
        id="weight-axis",
        targets=("ort",),
        severity="error",
        effect="without a bias the integer kernel takes the scales for those of the output channels: wrong results, or "
        "`filter scale shape invalid`",
        remedy="quantize the weights along their output channels: axis 0 of Conv, axis 1 of ConvTranspose",
        find=find_weight_axis,
    ),
    Rule(
        id="quantized-bias",
        targets=("trt",),
        severity="error",
        effect="TensorRT refuses it: `input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8`",
        remedy="keep the bias in float",
        find=find_quantized_bias,
    ),
    Rule(
        id="bias-overflow",
        targets=("ort",),
        severity="error",
        effect="ONNX Runtime rounds the bias to int32 in steps of input scale * weight scale; beyond 2**31 of them the "
        "channel is wrong",
        remedy="give dead channels a larger weight scale: their codes are 0",
        find=find_bias_overflow,
    ),
)
