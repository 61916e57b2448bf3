"""A read-only view of an ONNX graph: who writes and reads each tensor, its type, shape, and how it is quantized.

A tensor is static where constants alone decide it, such as a dequantized weight. Bodies of If and Loop are not looked
into; what they read counts as read by the operator that holds them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
CLIPS = ("Relu", "Clip")
_MOVES = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool")
"""Operators that only move or choose values: a runtime quantizes on either side of them."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """One tensor in codes: `(code - zero_point) * scale`."""

    head: NodeProto
    """The QuantizeLinear that writes it, or where there is none the DequantizeLinear that reads it."""
    clip: NodeProto | None
    """A Clip of the codes."""
    dequantizers: tuple[NodeProto, ...]
    code_type: int
    scale: Array | None
    """None where it is computed."""
    zero_point: Array | None
    """Zero where it is left out; None where it is computed."""
    axis: int
    codes: str
    """The tensor of codes: what `head` writes, or reads."""
    static: bool
    """Whether it is a constant, such as weights."""
    sealed: bool
    """Whether nothing but `clip` and `dequantizers` reads the codes, and those agree with `head`."""

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1

    @property
    def shifted(self) -> bool:
        """Whether some zero-point is not zero."""
        return self.zero_point is not None and bool(np.any(self.zero_point.astype(np.float32) != 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution, or a matrix product with constant weights."""

    node: NodeProto
    x: Quantized | None
    """None: its input is float."""
    w: Quantized | None
    weight_shape: tuple[int, ...]
    depthwise: bool

    @property
    def quantized(self) -> bool:
        """Whether input and weights are both quantized."""
        return self.x is not None and self.w is not None

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels; those of one group where there are several."""
        shape, op = self.weight_shape, self.node.op_type
        transposed = op == "Gemm" and attribute(self.node, "transB", 0)
        if op == "Conv" or transposed:
            return shape[1], shape[0]
        return (shape[-2], shape[-1]) if op in ("Gemm", "MatMul") else (shape[0], shape[1])


class Graph:
    """The view. Make a new one after a change."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self.inputs = [i for i in model.graph.input if i.name not in self.initializers]
        self.outputs = {o.name for o in model.graph.output}
        self.makers: dict[str, NodeProto] = {o: n for n in self.nodes for o in n.output if o}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)
        self.types: dict[str, int] = {name: t.data_type for name, t in self.initializers.items()}
        self.shapes: dict[str, tuple[int | str | None, ...]] = {n: tuple(t.dims) for n, t in self.initializers.items()}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = value.type.tensor_type
            self.types.setdefault(value.name, tensor.elem_type)
            if tensor.HasField("shape"):
                dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
                self.shapes.setdefault(value.name, tuple(dims))
        self._constants: dict[str, Array | None] = {}

    def label(self, node: NodeProto) -> str:
        """A name for people."""
        return str(node.name) or f"{node.op_type} → {next(iter(node.output), '')}"

    def type_of(self, name: str) -> int:
        """Element type of a tensor; UNDEFINED (0) where it is not known."""
        return self.types.get(name, TensorProto.UNDEFINED)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or Constant; None for what is computed."""
        if name not in self._constants:
            tensor, maker = self.initializers.get(name), self.makers.get(name)
            if tensor is None and maker is not None and maker.op_type == "Constant":
                tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
            self._constants[name] = None if tensor is None else numpy_helper.to_array(tensor)
        return self._constants[name]

    @cached_property
    def static(self) -> frozenset[str]:
        """Tensors that constants alone decide."""
        found = set(self.initializers)
        for node in self.nodes:
            if not node.op_type.startswith("Random") and all(name in found for name in reads(node)):
                found.update(node.output)
        return frozenset(found)

    @cached_property
    def quantized(self) -> list[Quantized]:
        """Every quantized tensor, in graph order."""
        found = [self._quantized(node) for node in self.nodes if node.op_type == QUANTIZE]
        known = {id(d) for q in found for d in q.dequantizers}
        rest = [self._quantized(n) for n in self.nodes if n.op_type == DEQUANTIZE and id(n) not in known]
        order = {id(node): index for index, node in enumerate(self.nodes)}
        return sorted((*found, *rest), key=lambda q: order[id(q.head)])

    @cached_property
    def dequantized(self) -> dict[str, Quantized]:
        """The quantized tensor behind each dequantized one."""
        return {d.output[0]: q for q in self.quantized for d in q.dequantizers}

    def quantized_source(self, name: str) -> Quantized | None:
        """The quantized tensor that `name` holds the values of; None for a float tensor."""
        while name not in self.dequantized:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _MOVES:
                return None
            name = maker.input[0]
        return self.dequantized[name]

    @cached_property
    def layers(self) -> list[Layer]:
        """Convolutions and products with constant weights."""
        return list(self._layers())

    def clip_range(self, node: NodeProto) -> tuple[float, float] | None:
        """What a Relu or Clip lets pass; None where the bounds are computed."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        ends = [-np.inf, np.inf]
        for index, name in enumerate(node.input[1:3]):
            value = self.constant(name) if name else None
            if name and (value is None or value.size != 1):
                return None
            if value is not None:
                ends[index] = float(value.reshape(-1)[0])
        for index, old in enumerate(("min", "max")):  # attributes before opset 11
            ends[index] = float(attribute(node, old, ends[index]))
        return ends[0], ends[1]

    def is_float(self, name: str) -> bool:
        """Whether a tensor is computed in floating point, or of unknown type."""
        return self.type_of(name) in (*FLOATS, TensorProto.UNDEFINED) and name not in self.static

    @cached_property
    def after_codes(self) -> frozenset[str]:
        """Float tensors computed from a dequantized activation, up to the next QuantizeLinear."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type == QUANTIZE:
                continue
            started = node.op_type == DEQUANTIZE and node.input[0] not in self.static
            if started or any(name in found for name in node.input):
                found.update(name for name in node.output if self.is_float(name))
        return frozenset(found)

    @cached_property
    def before_codes(self) -> frozenset[str]:
        """Float tensors from which a QuantizeLinear's input is computed."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type == QUANTIZE or (
                node.op_type != DEQUANTIZE and any(self.is_float(o) and o in found for o in node.output)
            ):
                found.update(name for name in node.input[: 1 if node.op_type == QUANTIZE else None] if name)
        return frozenset(found)

    def between_codes(self, node: NodeProto) -> bool:
        """Whether a node computes in float what came from codes and becomes codes again."""
        return any(i in self.after_codes for i in node.input) and any(o in self.before_codes for o in node.output)

    def _quantized(self, head: NodeProto) -> Quantized:
        writes = head.op_type == QUANTIZE
        codes = str(head.output[0] if writes else head.input[0])
        readers = self.readers.get(codes, [])
        clip = readers[0] if writes and len(readers) == 1 and readers[0].op_type == "Clip" else None
        last = codes if clip is None else str(clip.output[0])
        ends = tuple(n for n in self.readers.get(last, []) if n.op_type == DEQUANTIZE) if writes else (head,)
        rest = [n for n in self.readers.get(last, []) if n.op_type != DEQUANTIZE]
        zero = self._zero_point(head)
        agree = all(_same(self._zero_point(end), zero) for end in ends)
        return Quantized(
            head=head,
            clip=clip,
            dequantizers=ends,
            code_type=self._code_type(head, codes),
            scale=self.constant(head.input[1]),
            zero_point=zero,
            axis=int(attribute(head, "axis", 1)),
            codes=codes,
            static=head.input[0] in self.static,
            sealed=bool(ends) and not rest and agree and not {codes, last} & self.outputs,
        )

    def _zero_point(self, node: NodeProto) -> Array | None:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros((), np.int8)
        return self.constant(node.input[2])

    def _code_type(self, head: NodeProto, codes: str) -> int:
        if head.op_type == QUANTIZE and len(head.input) > 2 and head.input[2]:
            return self.type_of(head.input[2])
        if head.op_type == QUANTIZE:
            return int(attribute(head, "output_dtype", 0)) or TensorProto.UINT8
        return self.type_of(codes)

    def _layers(self) -> Iterator[Layer]:
        for node in self.nodes:
            if node.op_type not in LAYERS or len(node.input) < 2 or node.input[1] not in self.static:
                continue
            shape = tuple(d for d in self.shapes.get(node.input[1], ()) if isinstance(d, int))
            if len(shape) < 2:
                continue
            group = int(attribute(node, "group", 1))
            yield Layer(
                node=node,
                x=self.quantized_source(node.input[0]),
                w=self.quantized_source(node.input[1]),
                weight_shape=shape,
                depthwise=group > 1 and group in shape[:2] and shape[1] == 1,
            )


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def reads(node: NodeProto) -> Iterable[str]:
    """Names a node reads, those that its bodies take from outside included."""
    yield from (name for name in node.input if name)
    for held in node.attribute:
        if held.type == AttributeProto.GRAPH:
            own = {o for inner in held.g.node for o in inner.output} | {i.name for i in held.g.input}
            own |= {t.name for t in held.g.initializer}
            inside = (name for inner in held.g.node for name in reads(inner))
            yield from (n for n in (*inside, *(o.name for o in held.g.output)) if n not in own)


def _same(one: Array | None, other: Array | None) -> bool:
    return one is not None and other is not None and np.array_equal(one.reshape(-1), other.reshape(-1))
