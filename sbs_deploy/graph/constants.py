"""Values of constant tensors: initializers and Constant nodes, also when moved or cast.

Nothing else is computed, so no constant becomes larger than the data in the file.
"""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from sbs_deploy.graph.tensor import Array, attribute
from sbs_train.contract.bounds import CONSTANT_BYTES

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_PLAIN = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
FOLDED = ("Constant", "Identity", "Cast", "Transpose", *RESHAPES)
"""Operators whose constant outputs are computed."""


class Constants:
    """Values of constant tensors by name, computed once."""

    def __init__(
        self,
        initializers: Mapping[str, TensorProto | SparseTensorProto],
        makers: Mapping[str, NodeProto],
        shapes: Mapping[str, tuple[int | str | None, ...]],
    ) -> None:
        self._initializers, self._makers, self._shapes = initializers, makers, shapes
        self._known: dict[str, Array | None] = {}

    def value(self, name: str) -> Array | None:
        """The value of a tensor; None if the tensor is not constant, has no numbers, or is out of bounds."""
        chain: list[NodeProto] = []
        start = name
        while start not in self._known and start not in self._initializers:
            maker = self._makers.get(start)
            if maker is None or maker.op_type not in FOLDED or maker.domain not in ("", "ai.onnx"):
                self._known[start] = None
            elif maker.op_type == "Constant":
                self._known[start] = _constant(maker)
            else:
                chain.append(maker)
                start = maker.input[0]
        if start not in self._known:
            self._known[start] = _array(self._initializers[start])
        for node in reversed(chain):
            before = self._known[node.input[0]]
            self._known[node.output[0]] = None if before is None else self._moved(node, before)
        return self._known[name]

    def _moved(self, node: NodeProto, before: Array) -> Array | None:
        if node.op_type == "Identity":
            return before
        if node.op_type == "Transpose":
            order = attribute(node, "perm", None)
            return np.transpose(before, order) if order is None or len(order) == before.ndim else None
        if node.op_type == "Cast":
            return _cast(before, attribute(node, "to", 0))
        shape = self._shapes.get(node.output[0], (None,))
        sizes = [size for size in shape if isinstance(size, int)]
        fits = len(sizes) == len(shape) and int(np.prod(sizes, dtype=np.int64)) == before.size
        return before.reshape(sizes) if fits else None


def _constant(node: NodeProto) -> Array | None:
    for held in node.attribute:
        if held.name == "value":
            return _array(held.t)
        if held.name == "sparse_value":
            return _array(held.sparse_tensor)
        if held.name in _PLAIN:
            return np.asarray(helper.get_attribute_value(held), _PLAIN[held.name])
    return None


def _array(tensor: TensorProto | SparseTensorProto) -> Array | None:
    """The array of an initializer; None for text, and for too many zeros that the file leaves out."""
    if isinstance(tensor, TensorProto):
        return None if tensor.data_type == TensorProto.STRING else numpy_helper.to_array(tensor)
    values = numpy_helper.to_array(tensor.values)
    if tensor.values.data_type == TensorProto.STRING or _bytes(tensor, values.itemsize) > CONSTANT_BYTES:
        return None
    places = numpy_helper.to_array(tensor.indices)
    found: Array = np.zeros(tuple(tensor.dims), values.dtype)
    if places.ndim == 1:
        found.reshape(-1)[places] = values
    else:
        found[tuple(places.T)] = values
    return found


def _bytes(tensor: SparseTensorProto, itemsize: int) -> float:
    return float(np.prod(list(tensor.dims), dtype=np.float64)) * itemsize


def _cast(before: Array, to: int) -> Array | None:
    """The values in another type; None if the type cannot hold all values."""
    if to in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    with np.errstate(all="ignore"):
        after: Array = before.astype(helper.tensor_dtype_to_np_dtype(to))
        exact = np.array_equal(after.astype(np.float64), before.astype(np.float64), equal_nan=True)
    return after if exact else None
