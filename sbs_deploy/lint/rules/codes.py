"""Rules for integer types and zero-points."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import TensorProto

from sbs_deploy.graph.tensor import QUANTIZE, Quantized
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.edit import centre_codes, centred_codes, code_range, move_codes, replace_constant
from sbs_deploy.lint.finding import Hit, Rule

UINT8, INT8, INT32, INT4 = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT4
FP8 = TensorProto.FLOAT8E4M3FN
_BYTES = (UINT8, INT8)
_TRT_TYPES = (*_BYTES, INT32, INT4, FP8, TensorProto.FLOAT4E2M1, TensorProto.UNDEFINED)
"""Types that the parser for trt files reads in a DequantizeLinear, and INT32, which has a rule of its own."""


def type_name(code_type: int) -> str:
    """A tensor type's name in ONNX."""
    return str(TensorProto.DataType.Name(code_type)).lower()


def find_zero_points(graph: Graph) -> Iterator[Hit]:
    """Zero-points other than 0."""
    for tensor in graph.quantized:
        if tensor.shifted and tensor.code_type in _BYTES:
            zeros = sorted({int(z) for z in tensor.zero_point.reshape(-1)}) if tensor.zero_point is not None else []
            several = f"{zeros[0]} to {zeros[-1]}" if len(zeros) > 1 else str(zeros[0])
            detail = f"{type_name(tensor.code_type)}, zero-point {several}"
            yield Hit(node=graph.label(tensor.head), detail=detail, fix=_centring(graph, tensor))


def find_uint8(graph: Graph) -> Iterator[Hit]:
    """uint8 with zero-point 0, written out or by default."""
    for tensor in graph.quantized:
        if tensor.code_type == UINT8 and not tensor.shifted:
            yield Hit(node=graph.label(tensor.head), detail=_kind(tensor), fix=_centring(graph, tensor))


def find_trt_types(graph: Graph) -> Iterator[Hit]:
    """Tensors of types that the parser for trt files cannot read."""
    for tensor in graph.quantized:
        if tensor.code_type not in _TRT_TYPES:
            yield Hit(node=graph.label(tensor.head), detail=f"{type_name(tensor.code_type)}, {_kind(tensor)}")


def find_int4(graph: Graph) -> Iterator[Hit]:
    """INT4 activations, and INT4 weights of a layer with a quantized input."""
    for tensor in graph.quantized:
        if tensor.code_type == INT4 and not tensor.static:
            yield Hit(node=graph.label(tensor.head), detail="activation")
    for layer in graph.layers:
        if layer.x is not None and layer.w is not None and layer.w.code_type == INT4 != layer.x.code_type:
            yield Hit(node=graph.label(layer.node), detail=f"{type_name(layer.x.code_type)} input")


def find_moved_codes(graph: Graph) -> Iterator[Hit]:
    """Constant codes that an operator moves before they are dequantized."""
    for tensor in graph.quantized:
        maker = graph.makers.get(tensor.codes)
        if tensor.head.op_type == QUANTIZE or not tensor.static or maker is None or maker.op_type == "Constant":
            continue
        codes = graph.constant(tensor.codes)
        fix = None if codes is None else partial(replace_constant, graph, tensor.head, 0, codes)
        if maker.op_type != QUANTIZE:
            yield Hit(node=graph.label(tensor.head), detail=f"behind {maker.op_type}", fix=fix)


def find_fp8(graph: Graph) -> Iterator[Hit]:
    """FP8 tensors."""
    for tensor in graph.quantized:
        if tensor.code_type == FP8:
            yield Hit(node=graph.label(tensor.head), detail=_kind(tensor))


def find_fp8_mixed(graph: Graph) -> Iterator[Hit]:
    """Layers with FP8 on one side and another code on the other."""
    for layer in graph.layers:
        if layer.x is not None and layer.w is not None and (layer.x.code_type == FP8) != (layer.w.code_type == FP8):
            names = [type_name(side.code_type) for side in (layer.x, layer.w)]
            yield Hit(node=graph.label(layer.node), detail=f"{names[0]} input, {names[1]} weights")


def find_ort_types(graph: Graph) -> Iterator[Hit]:
    """Layers whose codes are not bytes."""
    for layer in graph.layers:
        sides = [side for side in (layer.x, layer.w) if side is not None]
        odd = sorted({type_name(s.code_type) for s in sides if s.code_type not in _BYTES})
        if layer.node.op_type in ("Conv", "ConvTranspose") and odd:
            yield Hit(node=graph.label(layer.node), detail=", ".join(odd))


def _kind(tensor: Quantized) -> str:
    return "constant" if tensor.static else "activation"


def _centring(graph: Graph, tensor: Quantized) -> partial[None] | None:
    """The repair that makes the tensor int8 with zero-point 0 and keeps every value; None if impossible."""
    if tensor.head.op_type != QUANTIZE:
        codes = centred_codes(graph, tensor)
        return None if codes is None else partial(centre_codes, graph, tensor, codes)
    if tensor.zero_point is None or tensor.zero_point.size != 1 or not tensor.sealed or tensor.code_type != UINT8:
        return None
    if tensor.clip is not None and graph.clip_range(tensor.clip) is None:
        return None
    zero = int(tensor.zero_point.reshape(-1)[0])
    low, high = code_range(graph, tensor)
    # QuantizeLinear saturates at the container's end: the new end must be equal, or lie beyond the Clip.
    fits = (low, high) == (zero - 128, zero + 127) or (tensor.clip is not None and low - zero >= -128)
    return partial(move_codes, graph, tensor, np.int8, -zero) if fits and high - zero <= 127 else None


RULES = (
    Rule(
        id="zero-point",
        dialects=("trt",),
        severity="error",
        effect="refused: `Non-zero zero point is not supported`",
        remedy="quantize symmetrically: int8 with zero-point 0",
        find=find_zero_points,
    ),
    Rule(
        id="uint8",
        dialects=("trt",),
        severity="error",
        effect="activations are imported `as INT8` and saturate at 127, not 255; constants are refused: "
        "`Found unsupported input type of UINT8`",
        remedy="quantize to int8; the unsigned range is 0 to 127",
        find=find_uint8,
    ),
    Rule(
        id="code-type",
        dialects=("trt",),
        severity="error",
        effect="this type cannot be read: `Failed to import initializer`",
        remedy="quantize to int8, or to FP8 (E4M3) for SM 8.9 and newer",
        find=find_trt_types,
    ),
    Rule(
        id="int4",
        dialects=("trt",),
        severity="error",
        effect="INT4 is for weights of layers with a float input only; otherwise the compiler fails: "
        "`CHECK(dtype == W.type()) failed`",
        remedy="store these codes as int8: INT8 is the narrowest type that convolutions compute in",
        find=find_int4,
    ),
    Rule(
        id="moved-codes",
        dialects=("trt",),
        severity="error",
        effect="constant codes have to stand right before their DequantizeLinear: `is only allowed before DQ`",
        remedy="store the codes as the DequantizeLinear reads them, or move its result instead",
        find=find_moved_codes,
    ),
    Rule(
        id="fp8-mixed",
        dialects=("trt",),
        severity="error",
        effect="input and weights of different codes; the compiler fails: `CHECK(dtype == W.type()) failed`",
        remedy="quantize input and weights of a layer both to FP8, or both to int8",
        find=find_fp8_mixed,
    ),
    Rule(
        id="fp8",
        dialects=("trt",),
        severity="warning",
        effect="runs on SM 8.9 and newer only; others: `the model contains HW-specific datatypes: fp8_e4m3`",
        remedy="quantize to int8 where older GPUs matter",
        find=find_fp8,
    ),
    Rule(
        id="code-type",
        dialects=("ort",),
        severity="warning",
        effect="integer convolutions have 8 bits only: this one runs in float, after a conversion",
        remedy="quantize to uint8; put a coarser grid into it with an integer Clip between Q and DQ",
        find=find_ort_types,
    ),
)
