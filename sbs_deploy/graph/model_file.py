"""Read and write ONNX files; files of unknown source are checked for bounds and for the lengths of tensors."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sbs_train.contract import bounds, rundir
from sbs_train.contract.errors import SbsError

_HALF_BYTES = frozenset(
    getattr(TensorProto, name) for name in ("INT4", "UINT4", "FLOAT4E2M1") if hasattr(TensorProto, name)
)
_GROWING = frozenset(
    (
        *("ConstantOfShape", "Concat", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike"),
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
    )
)
"""Operators whose output may be much larger than their inputs."""
_MOVING = frozenset(
    (
        *("Constant", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"),
        *("QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators whose output has as many values as their input."""
_COPIES = 4
"""Copies of a model that onnx makes to infer shapes."""
_REMEDY = "export the model again, with smaller tensors"


_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    DecodeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)
"""What onnx raises for a file that is not a whole, valid model."""


def load_onnx(path: Path) -> onnx.ModelProto:
    """A checked model whose bytes match its manifest; SbsError if the file is missing or damaged."""
    content = rundir.read_recorded(path, "sbs-deploy export", bounds.ONNX_BYTES)
    try:
        model = read_model(path, content)
        onnx.checker.check_model(model, full_check=True)
    except SbsError:
        raise
    except _DAMAGED as error:
        reason = str(error).strip().partition("\n")[0]
        raise SbsError(f"{path} is damaged ({reason}); make it again with `sbs-deploy export`") from error
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model atomically."""
    with rundir.atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def read_model(path: Path, content: bytes | None = None) -> ModelProto:
    """A model with its external data, before onnx's checks.

    Args:
        content: the bytes of the file, if already read.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: the file cannot be read, or is not regular.
        DecodeError: the file is no ONNX.
        ValueError: a tensor is longer or shorter than its shape says.
        SbsError: the model exceeds `bounds`.
    """
    if content is None:
        content = bounds.read_regular(path, bounds.ONNX_BYTES, _REMEDY)
    model = onnx.load_model_from_string(content)
    _require_few_nodes(model)
    tensors = list(_tensors(model))
    total = sum(_bytes_of(tensor.data_type, tensor.dims) for tensor in tensors)
    bounds.require(total, bounds.ONNX_BYTES, f"{path}: the bytes of its tensors are", _REMEDY)
    external = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    for tensor in external:
        _require_whole_file(path, tensor)
    if external:
        onnx.load_external_data_for_model(model, str(path.parent))
    for tensor in tensors:
        if tensor.HasField("raw_data"):
            if len(tensor.raw_data) != _bytes_of(tensor.data_type, tensor.dims):
                raise ValueError(f"{tensor.name or 'a constant'} has another length than its shape says")
        else:
            numpy_helper.to_array(tensor)  # ValueError for a wrong length
    _require_small_constants(path, model)
    return model


def require_small_tensors(model: ModelProto, limit: int, what: str, remedy: str) -> None:
    """SbsError if a tensor of known shape takes more than `limit` bytes when the model runs."""
    for name, size in _known_sizes(model).items():
        bounds.require(size, limit, f"{what}: the bytes of tensor {name:.100} are", remedy)


def inferred(model: ModelProto) -> GraphProto:
    """The graph with inferred types and shapes, including shapes that depend on constants.

    Raises:
        SbsError: onnx needs too much memory for such constants.
    """
    try:
        with bounds.memory(bounds.INFERENCE_BYTES + _COPIES * model.ByteSize()):
            return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except MemoryError as error:
        raise SbsError("the shapes of the model depend on too many values; export it with constants folded") from error


def _known_sizes(model: ModelProto) -> dict[str, int]:
    graph = inferred(model)
    sizes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            sizes[value.name] = _bytes_of(tensor.elem_type, [dim.dim_value for dim in tensor.shape.dim])
    return sizes


def _require_small_constants(path: Path, model: ModelProto) -> None:
    """SbsError for a large tensor that depends on constants alone, which engines compute when they load a model."""
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise ValueError(f"its functions cannot be put in their places ({error})") from error
    static, made = {tensor.name for tensor in model.graph.initializer} | {""}, []
    for node in model.graph.node:
        if all(name in static for name in node.input):
            static.update(node.output)
            made += [node] if node.op_type not in _MOVING else []
    sizes = _known_sizes(model) if made else {}
    for node in made:
        read = sum(sizes.get(name, 0) for name in set(node.input))
        for name in node.output:
            if node.op_type in _GROWING and name not in sizes:
                raise SbsError(
                    f"{path}: nobody can tell how large {name:.100} is, which {node.op_type} makes of constants; "
                    "export the model again, with constants folded"
                )
            what = f"{path}: the bytes of {name:.100}, which {node.op_type} makes of constants, are"
            bounds.require(sizes.get(name, 0), max(bounds.CONSTANT_BYTES, read), what, _REMEDY)


def _require_few_nodes(model: ModelProto) -> None:
    """SbsError for too many operators once all functions are inlined: nested calls can multiply."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > bounds.FUNCTION_DEPTH:
            raise ValueError("its functions call one another too deep, or without end")
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in counted:
                counted[key] = count(functions[key].node, depth + 1)
            total += counted.get(key, 1)
            total += sum(count(graph.node, depth + 1) for graph in _graphs(node))
        return total

    bounds.require(count(model.graph.node, 0), bounds.NODES, "the operators of the model are", "export it again")


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(owner: ModelProto | GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """All constant tensors, including those in bodies and functions."""
    if isinstance(owner, ModelProto):
        for part in (owner.graph, *owner.functions):
            yield from _tensors(part)
        return
    if isinstance(owner, GraphProto):
        yield from owner.initializer
        for sparse in owner.sparse_initializer:
            size = bounds.array_bytes([int(dim) for dim in sparse.dims], 8)
            bounds.require(size, bounds.CONSTANT_BYTES, "the bytes of a sparse tensor are", _REMEDY)
            yield from (sparse.values, sparse.indices)
    for node in owner.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for graph in _graphs(node):
            yield from _tensors(graph)


def _bytes_of(data_type: int, dims: Iterable[int]) -> int:
    """Bytes of a tensor in a file; each text counts as one byte."""
    count = bounds.array_bytes([int(dim) for dim in dims], 1)
    if data_type in _HALF_BYTES:
        return math.ceil(count / 2)
    return count * (1 if data_type == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _require_whole_file(path: Path, tensor: TensorProto) -> None:
    """SbsError or ValueError unless external data are as long as the tensor, which onnx does not check."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    size = _bytes_of(tensor.data_type, tensor.dims)
    if int(entries.get("length", size)) != size:
        raise ValueError(f"{tensor.name} has another length than its shape says")
    if "length" not in entries:  # without a length onnx reads to the end of the file
        place = path.parent / entries.get("location", "")
        with bounds.open_regular(place) as file:
            there = file.seek(0, 2) - int(entries.get("offset", 0))
        if there != size:
            raise SbsError(f"{place} holds {there:,} bytes for {tensor.name} and not {size:,}; export the model again")
