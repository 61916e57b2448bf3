"""A read-only view of an ONNX graph: who writes and reads each tensor, its type, shape, and how it is quantized.

A tensor is static if it depends on constants alone, such as a dequantized weight. Bodies of If and Loop are not viewed;
the If or Loop counts as the reader of tensors that its bodies read.
"""

from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto

from sbs_deploy.graph.constants import Constants
from sbs_deploy.graph.links import MOVES, makers_of, readers_of
from sbs_deploy.graph.model_file import inferred
from sbs_deploy.graph.tensor import (
    BYTES,
    DEQUANTIZE,
    FLOATS,
    QUANTIZE,
    Array,
    Quantized,
    attribute,
    reads,
    same,
)
from sbs_deploy.graph.weights import Layer, layers_of

_MOVES = (*MOVES, "MaxPool")
"""Operators that move or choose values: a runtime may quantize before or after them."""


class Graph:
    """The view of one graph; after a change of the graph, make a new view."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self.inputs = [i for i in model.graph.input if i.name not in self.initializers]
        self.outputs = {o.name for o in model.graph.output}
        self.makers = makers_of(model)
        self.readers = readers_of(model)
        self.types: dict[str, int] = {name: t.data_type for name, t in self.initializers.items()}
        self.shapes: dict[str, tuple[int | str | None, ...]] = {n: tuple(t.dims) for n, t in self.initializers.items()}
        typed = inferred(model)
        for value in (*typed.input, *typed.value_info, *typed.output):
            tensor = value.type.tensor_type
            self.types.setdefault(value.name, tensor.elem_type)
            if tensor.HasField("shape"):
                dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
                self.shapes.setdefault(value.name, tuple(dims))
        held: dict[str, TensorProto | SparseTensorProto] = dict(self.initializers)
        held |= {sparse.values.name: sparse for sparse in model.graph.sparse_initializer}
        self._constants = Constants(held, self.makers, self.shapes)

    def label(self, node: NodeProto) -> str:
        """A node's name for people."""
        return str(node.name) or f"{node.op_type} → {next(iter(node.output), '')}"

    def type_of(self, name: str) -> int:
        """Element type of a tensor; UNDEFINED (0) where it is not known."""
        return self.types.get(name, TensorProto.UNDEFINED)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or Constant, perhaps moved or cast; None for other tensors."""
        return self._constants.value(name)

    @cached_property
    def static(self) -> frozenset[str]:
        """Names of tensors that depend on constants alone."""
        found = {*self.initializers, *(sparse.values.name for sparse in self.model.graph.sparse_initializer)}
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

    def written_by(self, node: NodeProto) -> Quantized | None:
        """The tensor that a QuantizeLinear writes; None for other nodes."""
        return next((tensor for tensor in self.quantized if tensor.head is node and node.op_type == QUANTIZE), None)

    @cached_property
    def dequantized(self) -> dict[str, Quantized]:
        """The quantized tensor of each dequantized tensor, by name."""
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
        """Convolutions and matrix products with constant weights."""
        return list(layers_of(self))

    def clip_range(self, node: NodeProto) -> tuple[float, float] | None:
        """The range that a Relu or Clip passes; None if its bounds are not constant."""
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

    def cut(self, clip: NodeProto, tensor: Quantized) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """(range that an activation passes, range of the codes behind it) if the codes' range is larger, else None."""
        passes = self.clip_range(clip)
        if passes is None or tensor.scale is None or tensor.zero_point is None or tensor.scale.size != 1:
            return None
        if tensor.code_type not in BYTES:
            return None
        info = np.iinfo(np.uint8 if tensor.code_type == TensorProto.UINT8 else np.int8)
        scale, zero = float(tensor.scale.reshape(-1)[0]), int(tensor.zero_point.reshape(-1)[0])
        holds = (int(info.min) - zero) * scale, (int(info.max) - zero) * scale
        # A cut within half a step rounds to the same codes.
        return (
            None if passes[0] <= holds[0] + 0.499 * scale and passes[1] >= holds[1] - 0.499 * scale else (passes, holds)
        )

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
        """Whether a node computes in float between dequantized and quantized tensors."""
        return any(i in self.after_codes for i in node.input) and any(o in self.before_codes for o in node.output)

    def _quantized(self, head: NodeProto) -> Quantized:
        writes = head.op_type == QUANTIZE
        codes = str(head.output[0] if writes else head.input[0])
        readers = self.readers.get(codes, [])
        clip = readers[0] if writes and len(readers) == 1 and readers[0].op_type == "Clip" else None
        last = codes if clip is None else str(clip.output[0])
        found = [n for n in self.readers.get(last, []) if n.op_type == DEQUANTIZE] if writes else [head]
        rest = [n for n in self.readers.get(last, []) if n.op_type != DEQUANTIZE]
        ends = tuple(node for node in found if node is head or self._reads_alike(head, node))
        scale = self.constant(head.input[1])
        return Quantized(
            head=head,
            clip=clip,
            dequantizers=ends,
            code_type=self.code_type(head),
            scale=scale,
            zero_point=self._zero_point(head),
            axis=int(attribute(head, "axis", 1)),
            block=int(attribute(head, "block_size", 0)),
            codes=codes,
            static=head.input[0] in self.static,
            sealed=len(ends) == len(found) > 0 and not rest and not {codes, last} & self.outputs,
        )

    def _reads_alike(self, quantize: NodeProto, dequantize: NodeProto) -> bool:
        """Whether codes are read with the scale and zero-point that wrote them; True where one is not constant."""
        names = [node.input[1] for node in (quantize, dequantize)]
        scales = [self.constant(name) for name in names]
        zeros = [self._zero_point(node) for node in (quantize, dequantize)]
        if names[0] != names[1] and not same(*scales):
            return False
        return same(*zeros) or (len(quantize.input) > 2 and list(quantize.input[2:]) == list(dequantize.input[2:]))

    def _zero_point(self, node: NodeProto) -> Array | None:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros((), np.int8)
        return self.constant(node.input[2])

    def code_type(self, node: NodeProto) -> int:
        """Type of the codes that a QuantizeLinear writes, or a DequantizeLinear reads."""
        if node.op_type == QUANTIZE and len(node.input) > 2 and node.input[2]:
            return self.type_of(node.input[2])
        if node.op_type == QUANTIZE:
            return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
        return self.type_of(node.input[0])
