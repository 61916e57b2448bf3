"""Rules for the sign, the number and the axis of scales."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import TensorProto

from sbs_deploy.graph.tensor import QUANTIZE, Quantized
from sbs_deploy.graph.view import Graph
from sbs_deploy.graph.weights import Layer
from sbs_deploy.lint.edit import positive_scales, scalar_scale, spread
from sbs_deploy.lint.finding import Hit, Rule
from sbs_deploy.lint.kernels import integer_kernel

AXIS_OPSET = 13
"""First opset in which QuantizeLinear and DequantizeLinear have an axis."""


def find_not_positive(graph: Graph) -> Iterator[Hit]:
    """Scales that are 0, negative or NaN."""
    for tensor in graph.quantized:
        if tensor.scale is not None and not np.all(tensor.scale.astype(np.float64) > 0):
            wrong = int(np.sum(~(tensor.scale.astype(np.float64) > 0)))
            detail = f"{wrong} of {tensor.scale.size}, smallest {float(np.min(tensor.scale)):g}"
            yield Hit(node=graph.label(tensor.head), detail=detail, fix=_positive(graph, tensor))


def find_division_by_zero(graph: Graph) -> Iterator[Hit]:
    """QuantizeLinear by 0, and scales that are not finite."""
    for tensor in graph.quantized:
        if tensor.scale is None:
            continue
        scale = tensor.scale.astype(np.float64)
        if not np.all(np.isfinite(scale)) or (tensor.head.op_type == QUANTIZE and np.any(scale == 0)):
            yield Hit(node=graph.label(tensor.head), detail=f"scale {float(scale.min()):g}")


def find_miscounted(graph: Graph) -> Iterator[Hit]:
    """Scales along a missing axis, or along an axis of another length."""
    for tensor in graph.quantized:
        shape = graph.shapes.get(tensor.codes)
        if shape is None or tensor.scale is None or tensor.scale.ndim != 1 or tensor.block or graph.opset < AXIS_OPSET:
            continue
        count, rank = tensor.scale.size, len(shape)
        if count > 1 and not -rank <= tensor.axis < rank:
            yield Hit(node=graph.label(tensor.head), detail=f"axis {tensor.axis} of {rank} axes")
        elif count > 1 and isinstance(shape[tensor.axis], int) and shape[tensor.axis] != count:
            yield Hit(node=graph.label(tensor.head), detail=f"{count} scales for {shape[tensor.axis]} channels")


def find_per_channel_activations(graph: Graph) -> Iterator[Hit]:
    """Activations with a scale for each channel."""
    for tensor in graph.quantized:
        if tensor.per_channel and not tensor.static:
            count = tensor.scale.size if tensor.scale is not None else 0
            yield Hit(node=graph.label(tensor.head), detail=f"{count} scales along axis {tensor.axis}")


def find_weight_axis(graph: Graph) -> Iterator[Hit]:
    """Weights of convolutions whose scales run along another axis than the output channels."""
    for layer in graph.layers:
        if layer.node.op_type in ("Conv", "ConvTranspose") and _off_axis(graph, layer):
            yield Hit(node=graph.label(layer.node), detail=f"axis {layer.scale_axis}, not {layer.output_axis}")


def find_misread_scales(graph: Graph) -> Iterator[Hit]:
    """Weights whose scales an integer kernel misreads as scales of the output channels."""
    for layer in graph.layers:
        if layer.w is None or layer.w.scale is None or not integer_kernel(graph, layer):
            continue
        scale = layer.w.scale
        if layer.w.block and scale.ndim == 2 and scale.size == layer.outputs == scale.shape[layer.output_axis]:
            continue  # one block: the scales are those of the output channels
        if layer.w.block and scale.size > 1:
            yield Hit(node=graph.label(layer.node), detail=f"blocks of {layer.w.block}")
        elif _off_axis(graph, layer):
            yield Hit(node=graph.label(layer.node), detail=f"axis {layer.scale_axis}, not {layer.output_axis}")


def find_blocks(graph: Graph) -> Iterator[Hit]:
    """Blocked scales that are not supported: off the last two axes, one per code, or of transposed products."""
    for layer in graph.layers:
        w = layer.w
        if w is None or not w.block or w.scale is None:
            continue
        rank, last = len(layer.weight_shape), (len(layer.weight_shape) - 1, len(layer.weight_shape) - 2)
        own = None if layer.order is None else layer.order.index(w.axis % rank)
        turned = layer.order is not None and layer.order != tuple(range(rank))
        product = layer.node.op_type in ("Gemm", "MatMul")
        transposed = product and (turned or (layer.node.op_type == "Gemm" and layer.output_axis == 0))
        if w.scale.shape == graph.shapes.get(w.codes):
            yield Hit(node=graph.label(layer.node), detail="a scale for each code")
        elif transposed:
            yield Hit(node=graph.label(layer.node), detail="the product reads them transposed")
        elif w.axis % w.scale.ndim < w.scale.ndim - 2 or (own is not None and own not in last):
            yield Hit(node=graph.label(layer.node), detail=f"blocks along axis {w.axis}")


def find_single_scales(graph: Graph) -> Iterator[Hit]:
    """Convolutions without a bias, with one scale in a list, whose result is a network output."""
    for layer in graph.layers:
        w, name = layer.w, layer.result
        if layer.node.op_type != "Conv" or layer.bias or w is None or w.scale is None or w.scale.shape != (1,):
            continue
        while len(readers := graph.readers.get(name, [])) == 1 and readers[0].op_type == "Identity":
            name = readers[0].output[0]
        if name in graph.outputs and not readers:
            fix = partial(scalar_scale, graph, w) if w.zero_point is not None and w.zero_point.size == 1 else None
            yield Hit(node=graph.label(layer.node), fix=fix)


def _off_axis(graph: Graph, layer: Layer) -> bool:
    blocked = layer.w is not None and layer.w.block > 0
    return graph.opset >= AXIS_OPSET and not blocked and layer.scale_axis not in (None, layer.output_axis)


def _positive(graph: Graph, tensor: Quantized) -> partial[None] | None:
    codes = graph.constant(tensor.codes)
    if codes is None or tensor.scale is None or tensor.code_type != TensorProto.INT8 or tensor.shifted:
        return None
    # Without -128 every code can be negated.
    opposite = bool(np.all(tensor.scale >= 0)) or int(codes.min(initial=0)) > -128
    sign = spread(np.sign(tensor.scale), codes, tensor)
    if sign is None or not opposite or not np.all(np.isfinite(tensor.scale)):
        return None
    return partial(positive_scales, graph, tensor, sign.astype(np.int8))


RULES = (
    Rule(
        id="scale",
        dialects=("trt",),
        severity="error",
        effect="refused: `Scale coefficients must all be positive`",
        remedy="clamp the scales of dead channels at 1e-8; turn the sign of codes, not of scales",
        find=find_not_positive,
    ),
    Rule(
        id="scale",
        dialects=("ort",),
        severity="error",
        effect="divides by zero or multiplies by infinity: the codes mean nothing",
        remedy="calibrate this tensor again: its range is empty or damaged",
        find=find_division_by_zero,
    ),
    Rule(
        id="scale-count",
        dialects=("trt", "ort"),
        severity="error",
        effect="both refuse it: there is one scale for each channel along the axis",
        remedy="write as many scales as the tensor has channels, and the axis that they run along",
        find=find_miscounted,
    ),
    Rule(
        id="per-channel-activation",
        dialects=("trt", "ort"),
        severity="warning",
        effect="there is no integer kernel for it: the layer that reads it runs in float",
        remedy="quantize activations per tensor, and only weights per channel",
        find=find_per_channel_activations,
    ),
    Rule(
        id="weight-axis",
        dialects=("trt",),
        severity="warning",
        effect="there is no integer kernel for it: the layer runs in float",
        remedy="quantize the weights along their output channels: axis 0 of Conv, axis 1 of ConvTranspose",
        find=find_weight_axis,
    ),
    Rule(
        id="weight-axis",
        dialects=("ort",),
        severity="error",
        effect="without a float bias the integer kernel takes the scales for those of the output channels: wrong "
        "results, or `filter scale shape invalid`",
        remedy="quantize the weights along their output channels: axis 0 of Conv and of Gemm with transB, axis 1 of "
        "Gemm and MatMul",
        find=find_misread_scales,
    ),
    Rule(
        id="blocked-scales",
        dialects=("trt",),
        severity="error",
        effect="blocks lie along the last two axes of weights only: `The blocking dimension must be the last "
        "or second to last dimension`, `Only a single blocking dimension is allowed`, or the compiler fails: "
        "`CHECK(is_constant()) failed`",
        remedy="quantize the weights along their output channels",
        find=find_blocks,
    ),
    Rule(
        id="single-scale",
        dialects=("trt",),
        severity="error",
        effect="the compiler fails where such a convolution without a bias is the last: `same_symbolic_shapes`",
        remedy="write the one scale as a scalar",
        find=find_single_scales,
    ),
)
