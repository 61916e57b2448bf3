"""Named arrays: what a network takes and returns, checks of what it is given, and parts of its samples.

Axis 0 of most arrays is the sample. An array whose axis 0 has a fixed size, such as a table of anchors, is the same for
all samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx

from sbs_deploy.graph.tensor import Array as Array
from sbs_train.contract.errors import SbsError

Arrays = dict[str, Array]
Named = Mapping[str, Array]

BATCH = "batch"
"""Name of an axis 0 of open size that has no name in its graph."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """An input or an output of a network."""

    name: str
    dtype: str
    """NumPy's name of the type: float32, int64, bool, ..."""
    shape: tuple[int | str, ...]
    """Sizes of the axes; the name of an axis whose size is open."""


def input_specs(model: onnx.ModelProto) -> tuple[ArraySpec, ...]:
    """The inputs of a graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in constants)


def output_specs(model: onnx.ModelProto) -> tuple[ArraySpec, ...]:
    """The outputs of a graph."""
    return tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> ArraySpec:
    kind = value.type.tensor_type
    names = [size.dim_param or open_axis(value.name, axis) for axis, size in enumerate(kind.shape.dim)]
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
    return ArraySpec(
        name=value.name,
        dtype=str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))),
        shape=tuple(name if size is None else size for name, size in zip(names, sizes, strict=True)),
    )


def open_axis(tensor: str, axis: int) -> str:
    """A name for an axis of open size that has none."""
    return f"{tensor}.{axis}" if axis else BATCH


def described(specs: Sequence[ArraySpec]) -> str:
    """The arrays in words: x float32 (batch, 3, 32, 32), mask bool (batch)."""
    return ", ".join(f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})" for spec in specs)


def batch_axis(inputs: Sequence[ArraySpec]) -> str | None:
    """Name of the axis of the samples, the first axis 0 of open size unless one is "batch"; None without any."""
    names = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)]
    return BATCH if BATCH in names else next((str(name) for name in names), None)


def per_sample(inputs: Sequence[ArraySpec]) -> frozenset[str]:
    """Names of the inputs whose axis 0 is the sample."""
    batch = batch_axis(inputs)
    return frozenset(spec.name for spec in inputs if spec.shape and spec.shape[0] == batch)


def growing(outputs: Sequence[ArraySpec]) -> frozenset[str]:
    """Names of the outputs whose axis 0 grows with the samples."""
    return frozenset(spec.name for spec in outputs if spec.shape and isinstance(spec.shape[0], str))


def open_axes(inputs: Sequence[ArraySpec]) -> tuple[str, ...]:
    """Names of the axes of open size, the batch left out."""
    names = dict.fromkeys(size for spec in inputs for size in spec.shape if isinstance(size, str))
    return tuple(name for name in names if name != batch_axis(inputs))


def sizes_of(inputs: Named, specs: Sequence[ArraySpec]) -> dict[str, int]:
    """Size of every axis of open size in the inputs, by name."""
    found: dict[str, int] = {}
    for spec in specs:
        for name, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
            if isinstance(name, str):
                found.setdefault(name, size)
    return found


def checked(inputs: Named, specs: Sequence[ArraySpec], taker: str) -> Arrays:
    """The inputs in the order of the specs, each contiguous.

    Args:
        taker: what takes the arrays, for messages.

    Raises:
        SbsError: a name is wrong or missing, or an array has another type or a shape that does not fit.
    """
    problem = _problem(inputs, specs)
    if problem is not None:
        raise SbsError(f"{taker} takes {described(specs)}; {problem}")
    given = {spec.name: inputs[spec.name] for spec in specs}
    return {name: array if array.flags.c_contiguous else np.ascontiguousarray(array) for name, array in given.items()}


def _problem(inputs: Any, specs: Sequence[ArraySpec]) -> str | None:
    """Every inference waits for this, so that what is slow is only done for a wrong input."""
    if not isinstance(inputs, Mapping):
        return f"it was given {type(inputs).__name__}, not arrays by name"
    sizes: dict[str, int] = {}
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            return _unknown(inputs, specs) or f"{spec.name} is missing"
        if not isinstance(array, np.ndarray):
            return f"{spec.name} is {type(array).__name__}, not a NumPy array"
        if array.dtype != _dtype(spec.dtype):
            return f"{spec.name} is {array.dtype}"
        fits = array.ndim == len(spec.shape)
        for size, wanted in zip(array.shape, spec.shape, strict=False):
            fits = fits and size > 0 and size == (sizes.setdefault(wanted, size) if type(wanted) is str else wanted)
        if not fits:
            return f"{spec.name} is {array.shape}"
    return _unknown(inputs, specs) if len(inputs) > len(specs) else None


def _unknown(inputs: Named, specs: Sequence[ArraySpec]) -> str | None:
    names = {spec.name for spec in specs}
    return next((f"it has no input {name}" for name in inputs if name not in names), None)


_dtype = cache(np.dtype)


def samples_of(inputs: Named, specs: Sequence[ArraySpec]) -> int:
    """Number of samples in the inputs; 1 where no input has an axis of samples."""
    return next((len(inputs[spec.name]) for spec in specs if spec.name in per_sample(specs)), 1)


def first(arrays: Named, rows: Mapping[str, int]) -> Arrays:
    """The first `rows` of arrays along axis 0; arrays without a number of rows as they are."""
    return {name: array[: rows[name]] if name in rows else array for name, array in arrays.items()}


def repeated(inputs: Named, specs: Sequence[ArraySpec], samples: int) -> Arrays:
    """The inputs with their samples cut, or repeated, to a number of samples."""
    names = per_sample(specs)
    return {
        name: np.ascontiguousarray(np.resize(array, (samples, *array.shape[1:]))) if name in names else array
        for name, array in inputs.items()
    }


def in_parts(inputs: Named, specs: Sequence[ArraySpec], batch: int) -> Iterator[Arrays]:
    """The inputs, `batch` samples at a time; the last part may have fewer."""
    names, samples = per_sample(specs), samples_of(inputs, specs)
    if not names:
        yield dict(inputs)
        return
    for start in range(0, samples, batch):
        yield {name: array[start : start + batch] if name in names else array for name, array in inputs.items()}


def joined(parts: Sequence[Named], names: frozenset[str]) -> Arrays:
    """Outputs of `in_parts`: those that grow with the samples one behind the other, others of the first part."""
    return {
        name: np.concatenate([part[name] for part in parts]) if name in names else parts[0][name] for name in parts[0]
    }


def noise(specs: Sequence[ArraySpec], samples: int, sizes: Mapping[str, int] | None = None) -> Arrays:
    """Inputs to try a network with: standard normal floats, zeros of other types.

    Zeros are an index that every table has.

    Args:
        sizes: sizes of axes that are open, by name; 1 for others.
    """
    rng, given = np.random.default_rng(0), dict(sizes or {})
    given.setdefault(batch_axis(specs) or "", samples)
    made = {}
    for spec in specs:
        shape = tuple(given.get(size, 1) if isinstance(size, str) else size for size in spec.shape)
        floats = np.dtype(spec.dtype).kind == "f"
        made[spec.name] = (rng.standard_normal(shape) if floats else np.zeros(shape)).astype(spec.dtype)
    return made


def with_sizes(model: onnx.ModelProto, inputs: Named) -> onnx.ModelProto:
    """A copy of a graph whose open sizes are those of the inputs, with all shapes inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        for size, found in zip(value.type.tensor_type.shape.dim, np.shape(inputs.get(value.name, ())), strict=False):
            size.dim_value = found
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy)
