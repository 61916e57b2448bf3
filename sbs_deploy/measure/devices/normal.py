"""Convert any float ONNX graph to the form that is measured: sizes of all axes but the batch, and layers named by their
weights."""

from collections.abc import Collection

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from sbs_deploy.export.qdq import OPSET
from sbs_deploy.graph.arrays import BATCH
from sbs_deploy.graph.edit import constant, input_name
from sbs_deploy.graph.names import QUANTIZED_OPS, layer_of
from sbs_deploy.graph.view import Graph
from sbs_train.contract.errors import SbsError

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.BOOL)
_IMAGE_RANK = 4
_OPEN = 0
"""Size that stands for an axis that depends on the batch."""


def normal(name: str, model: onnx.ModelProto, batch: int, image: tuple[int, int, int]) -> onnx.ModelProto:
    """A copy whose inputs have fixed sizes, and whose weights are initializers called `LAYER.weight`.

    Args:
        batch: samples of one inference; must equal the fixed first axis of an input.
        image: channels, height and width for an image of open size.

    Raises:
        SbsError: an input has a type or a shape for which no values can be invented.
    """
    copy = _at_opset(name, model)
    typed = ir.from_proto(copy)
    graph = typed.graph
    common.RemoveInitializersFromInputsPass()(typed)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(typed)
    _own_weights(graph, Graph(copy))
    for value in graph.inputs:
        sizes = _sizes(name, value, batch, image)
        value.shape = ir.Shape([*(size or BATCH for size in sizes[:1]), *sizes[1:]])
    made = ir.to_proto(typed)
    del made.graph.value_info[:]
    return made


def _at_opset(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the opset of Q/DQ graphs."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset == OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise SbsError(f"{name} is of opset {opset} and cannot be converted; export it at opset {OPSET}") from error


def _own_weights(graph: ir.Graph, view: Graph) -> None:
    """Give every layer initializers of its own for weights and bias; unnamed layers are named after their nodes."""
    used: set[str] = set()
    for index, node in enumerate(graph):
        weights, bias = input_name(node, 1), input_name(node, 2)
        if node.op_type not in QUANTIZED_OPS or (value := view.constant(weights)) is None:
            continue
        bare = node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
        if weights not in graph.initializers or weights in used or layer_of(weights) is None or bare:
            stem = layer_of(weights) or node.name or node.outputs[0].name or f"layer_{index}"
            weights = _free(graph.initializers, stem, ".weight")
            node.replace_input_with(1, constant(graph, weights, value.T if bare else value))
            if bare:
                node.attributes["transB"] = ir.AttrInt64("transB", 1)
        used.add(weights)
        if bias and bias not in graph.initializers and (value := view.constant(bias)) is not None:
            stem = layer_of(weights) or weights
            node.replace_input_with(2, constant(graph, _free(graph.initializers, stem, ".bias"), value))


def _free(taken: Collection[str | None], stem: str, end: str = "") -> str:
    """A free name: `stem` and `end`, with a number in between if taken."""
    names = (f"{stem}{more}{end}" for more in ("", *(f"_{number}" for number in range(1, len(taken) + 2))))
    return next(name for name in names if name not in taken)


def _sizes(name: str, value: ir.Value, batch: int, image: tuple[int, int, int]) -> list[int]:
    """Sizes of an input's axes; 0 for an open batch."""
    if value.dtype not in (*_FLOATS, *_INTEGERS) or value.shape is None:
        kind = value.dtype.name.lower() if value.dtype is not None else "no tensor"
        raise SbsError(
            f"{name}: no values can be made up for input {value.name} ({kind}); export it with a float input"
        )
    sizes = [size if isinstance(size, int) else 0 for size in value.shape]
    if len(sizes) == _IMAGE_RANK and value.dtype in _FLOATS:
        sizes[1:] = [size or given for size, given in zip(sizes[1:], image, strict=True)]
    if not all(size > 0 for size in sizes[1:]):
        open_axes = ", ".join(str(index) for index, size in enumerate(sizes) if index and size <= 0)
        raise SbsError(
            f"{name}: axis {open_axes} of input {value.name} is open; export it with all axes fixed but the batch"
        )
    if sizes and sizes[0] not in (_OPEN, batch):
        raise SbsError(
            f"{name}: the first axis of input {value.name} is fixed at {sizes[0]}; give --batch {sizes[0]} if it is "
            f"the batch, or export the network with an open batch axis in front"
        )
    return sizes
