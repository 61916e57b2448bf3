"""When the runtime of ort files computes a layer from codes, and when it rounds a float bias.

The runtime's optimizer fuses DequantizeLinear, an operator and QuantizeLinear if all inputs are dequantized; before, it
quantizes a float bias that blocks the fusion. tests/sbs_deploy/lint/test_agreement.py compares both with the runtime.
"""

import numpy as np
from onnx import TensorProto

from sbs_deploy.graph.tensor import BYTES, CLIPS, QUANTIZE, Array, Quantized
from sbs_deploy.graph.view import Graph
from sbs_deploy.graph.weights import Layer

_ALIKE = 1e-3
"""Largest relative difference between the scales of a bias and of its accumulator that count as equal."""


def integer_kernel(graph: Graph, layer: Layer) -> bool:
    """Whether the layer is computed from codes, with the stored scales of its weights."""
    x, w, node = layer.x, layer.w, layer.node
    if x is None or w is None or layer.order is None or x.per_channel or node.op_type == "ConvTranspose":
        return False
    turned = layer.order != tuple(range(len(layer.order)))
    if x.code_type not in BYTES or w.code_type not in BYTES or (w.block and turned):
        return False
    kind = _kernel_type(graph, x)
    if kind == TensorProto.INT8 != w.code_type:
        return False
    behind = _quantizers(graph, layer.result)
    if behind is None or any(_kernel_type(graph, tensor) != kind for tensor in behind):
        return False
    if layer.bias and not _bias_in_codes(graph, layer):
        return False
    if node.op_type == "Gemm" or (layer.bias and node.op_type == "MatMul"):
        return w.scale is None or w.scale.size in (1, layer.outputs)
    return bool(behind) == (node.op_type == "Conv")


def quantizes_bias(graph: Graph, layer: Layer) -> bool:
    """Whether a float bias is rounded to int32 in steps of input scale * weight scale."""
    bias = graph.constant(layer.bias) if layer.bias else None
    if bias is None or bias.ndim != 1 or layer.x is None or layer.x.scale is None or layer.x.scale.size != 1:
        return False
    w = layer.w
    if w is None or w.scale is None or layer.order is None or w.block or not _leads_to_quantizer(graph, layer.result):
        return False
    return w.scale.size == 1 or (w.scale.size == bias.size and layer.scale_axis == layer.output_axis)


def bias_in_int32(graph: Graph, layer: Layer) -> Quantized | None:
    """The bias if it is dequantized from int32, else None."""
    bias = graph.quantized_source(layer.bias) if layer.bias else None
    return bias if bias is not None and bias.code_type == TensorProto.INT32 else None


def bias_scale_fits(layer: Layer, bias: Quantized) -> bool:
    """Whether the scales of an int32 bias equal those of the layer's accumulator."""
    scales = [None if side is None else side.scale for side in (layer.x, layer.w, bias)]
    x, w, own = scales
    if x is None or w is None or own is None:
        return True
    steps: Array = np.asarray(x.astype(np.float64).reshape(-1)[:1] * w.astype(np.float64).reshape(-1))
    if 1 not in (own.size, steps.size) and own.size != steps.size:
        return False
    return np.allclose(own.astype(np.float64).reshape(-1), steps, rtol=_ALIKE, atol=0.0)


def _bias_in_codes(graph: Graph, layer: Layer) -> bool:
    bias = bias_in_int32(graph, layer)
    return bias is not None and (layer.node.op_type != "Conv" or bias_scale_fits(layer, bias))


def _kernel_type(graph: Graph, tensor: Quantized) -> int:
    """The type that kernels on x86 see: int8 between one Q and one DQ with one reader becomes uint8."""
    readers = [reader for node in tensor.dequantizers for reader in graph.readers.get(node.output[0], [])]
    alone = tensor.head.op_type == QUANTIZE and tensor.sealed and tensor.clip is None and len(readers) <= 1
    return TensorProto.UINT8 if alone and tensor.code_type == TensorProto.INT8 else tensor.code_type


def _quantizers(graph: Graph, result: str) -> list[Quantized] | None:
    """Quantized tensors of a result, behind an activation that cuts nothing off; None if fusion is blocked."""
    readers = graph.readers.get(result, [])
    if len(readers) == 1 and readers[0].op_type in CLIPS and readers[0].output[0] not in graph.outputs:
        clip, readers = readers[0], graph.readers.get(readers[0].output[0], [])
        if len(readers) == 1:
            tensor = graph.written_by(readers[0])
            if tensor is None or graph.cut(clip, tensor):
                return None
            result = clip.output[0]
        else:
            readers = [clip]
    found = [tensor for node in readers if (tensor := graph.written_by(node)) is not None]
    return found if not found or (len(readers) == 1 and result not in graph.outputs) else None


def _leads_to_quantizer(graph: Graph, name: str) -> bool:
    """Whether a result has a single reader: a QuantizeLinear, perhaps behind Relu and Clip."""
    while True:
        readers = graph.readers.get(name, [])
        if len(readers) != 1 or readers[0].op_type not in (QUANTIZE, *CLIPS):
            return False
        if readers[0].op_type == QUANTIZE:
            return True
        name = readers[0].output[0]
