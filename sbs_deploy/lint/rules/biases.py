"""Rules for int32 biases, in the file or rounded by the runtime."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import TensorProto

from sbs_deploy.graph.tensor import Array, Quantized
from sbs_deploy.graph.view import Graph
from sbs_deploy.graph.weights import Layer
from sbs_deploy.lint.edit import float_bias, value_of, wider_scales
from sbs_deploy.lint.finding import Hit, Rule
from sbs_deploy.lint.kernels import bias_in_int32, bias_scale_fits, integer_kernel, quantizes_bias

ACCUMULATOR_MAX = 2.0**31
HEADROOM = 2.0**30
"""Largest |int32 bias| after a repair, which leaves room for the sum of products."""


def find_quantized_bias(graph: Graph) -> Iterator[Hit]:
    """Constants dequantized from int32."""
    for tensor in graph.quantized:
        if tensor.code_type == TensorProto.INT32:
            yield Hit(node=graph.label(tensor.head), fix=_float_bias(graph, tensor))


def find_bias_scales(graph: Graph) -> Iterator[Hit]:
    """Layers whose int32 bias has other steps than the accumulator."""
    for layer in graph.layers:
        bias = bias_in_int32(graph, layer)
        if layer.node.op_type == "Conv" or bias is None or not integer_kernel(graph, layer):
            continue
        if not bias_scale_fits(layer, bias):
            yield Hit(node=graph.label(layer.node), fix=_float_bias(graph, bias))


def find_bias_overflow(graph: Graph) -> Iterator[Hit]:
    """Layers whose float bias exceeds int32 in steps of the accumulator."""
    for layer in graph.layers:
        bias = graph.constant(layer.bias) if quantizes_bias(graph, layer) else None
        if bias is None or layer.x is None or layer.x.scale is None or layer.w is None or layer.w.scale is None:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.abs(bias.astype(np.float64)) / abs(float(layer.x.scale.reshape(-1)[0]))
        needed[bias == 0] = 0.0
        scale = np.abs(layer.w.scale.astype(np.float64).reshape(-1))
        beyond = scale * ACCUMULATOR_MAX < needed
        if np.any(beyond):
            fix = _wider(graph, layer, beyond, needed)
            yield Hit(node=graph.label(layer.node), detail=f"{int(beyond.sum())} of {beyond.size} channels", fix=fix)


def _wider(graph: Graph, layer: Layer, beyond: Array, needed: Array) -> partial[None] | None:
    """The repair that raises the scales of dead channels; None if a channel is not dead."""
    codes, w = layer.codes(graph), layer.w
    if codes is None or w is None or w.scale is None or w.shifted or not np.all(np.isfinite(needed)):
        return None
    if w.scale.size == 1:
        at_least = np.full(w.scale.shape, needed.max() / HEADROOM)
        return None if np.any(codes) else partial(wider_scales, graph, w, at_least)
    dead = len(codes) == beyond.size and not np.any(codes[beyond])
    return partial(wider_scales, graph, w, np.where(beyond, needed / HEADROOM, 0.0)) if dead else None


def _float_bias(graph: Graph, tensor: Quantized) -> partial[None] | None:
    value = value_of(graph, tensor)
    return None if value is None else partial(float_bias, graph, tensor.head, value)


RULES = (
    Rule(
        id="quantized-bias",
        dialects=("trt",),
        severity="error",
        effect="refused: `input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8`",
        remedy="keep the bias in float",
        find=find_quantized_bias,
    ),
    Rule(
        id="bias-scale",
        dialects=("ort",),
        severity="error",
        effect="an int32 bias of Gemm counts in steps of input scale * weight scale, whatever its own scale",
        remedy="keep the bias in float",
        find=find_bias_scales,
    ),
    Rule(
        id="bias-overflow",
        dialects=("ort",),
        severity="error",
        effect="the bias is rounded to int32 in steps of input scale * weight scale; beyond 2**31 of them the "
        "channel is wrong",
        remedy="give dead channels a larger weight scale: their codes are 0",
        find=find_bias_overflow,
    ),
)
