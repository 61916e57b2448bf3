"""Attributes of nodes, and quantized tensors as records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
BYTES = (TensorProto.UINT8, TensorProto.INT8)
CLIPS = ("Relu", "Clip")

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """One tensor in codes: `(code - zero_point) * scale`."""

    head: NodeProto
    """The QuantizeLinear that writes the codes, or without one the DequantizeLinear that reads them. A DequantizeLinear
    with another scale or zero-point than the QuantizeLinear is the head of a tensor of its own."""
    clip: NodeProto | None
    """The Clip of the codes, if any."""
    dequantizers: tuple[NodeProto, ...]
    code_type: int
    scale: Array | None
    """Scale; None if it is not constant."""
    zero_point: Array | None
    """Zero-point; zero if left out, None if it is not constant."""
    axis: int
    """Axis of several scales, from the head's attribute; may be negative."""
    block: int
    """Number of codes that share a scale along the axis; 0 without blocks."""
    codes: str
    """Name of the tensor of codes that `head` writes or reads."""
    static: bool
    """Whether the codes are constant, such as weights."""
    sealed: bool
    """Whether only `clip` and `dequantizers` read the codes, with the scale and zero-point of `head`."""

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1

    @property
    def shifted(self) -> bool:
        """Whether some zero-point is not zero."""
        return self.zero_point is not None and bool(np.any(self.zero_point.astype(np.float32) != 0))


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute; `default` if the node lacks it."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def reads(node: NodeProto) -> Iterable[str]:
    """Names that a node reads, including outer names that its bodies read."""
    yield from (name for name in node.input if name)
    for held in node.attribute:
        for body in (held.g,) if held.type == AttributeProto.GRAPH else held.graphs:
            own = {o for inner in body.node for o in inner.output} | {i.name for i in body.input}
            own |= {t.name for t in body.initializer}
            inside = (name for inner in body.node for name in reads(inner))
            yield from (n for n in (*inside, *(o.name for o in body.output)) if n not in own)


def same(one: Array | None, other: Array | None) -> bool:
    """Whether two arrays are known and hold the same values; a scalar and one value are the same."""
    return one is not None and other is not None and np.array_equal(one.reshape(-1), other.reshape(-1))
