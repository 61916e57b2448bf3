"""Which tensors of a graph float16 cannot hold, found by running the graph in float32 on real samples.

Too large: a value, or an intermediate sum, within HEADROOM of float16's end, as other samples may give larger ones.
Too small: rounding to float16 loses too much of the tensor, as most values lie below float16's full digits.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from sbs_deploy.graph.arrays import Array, Named, input_specs, repeated, samples_of, with_sizes
from sbs_deploy.graph.run import run_graph
from sbs_deploy.graph.tensor import attribute
from sbs_deploy.legalise.half import LARGEST, LOST

HEADROOM = 8.0
SAMPLES = 16
"""Golden samples that ranges are found with."""
PART_BYTES = 2**28
"""Most bytes of tensors in memory at a time."""
_AVERAGES = ("GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum")
"""Operators whose inner sums may be larger than their outputs."""
_SQUARES = ("ReduceL2", "LayerNormalization", "InstanceNormalization", "GroupNormalization")
"""Operators that square their inputs internally."""


def beyond_float16(model: onnx.ModelProto, inputs: Named) -> frozenset[str]:
    """Names of tensors that should stay in float32 together with their writers and readers.

    Args:
        model: a float32 model, quantized or not.
        inputs: samples for the model; the first SAMPLES are used.
    """
    specs = input_specs(model)
    some = repeated(inputs, specs, min(SAMPLES, samples_of(inputs, specs)))
    model, sums = _with_sums(with_sizes(model, some))
    typed = onnx.shape_inference.infer_shapes(model)
    sizes = {
        value.name: 4 * int(np.prod([max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim]))
        for value in (*typed.graph.value_info, *typed.graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    squared = {node.input[0] for node in model.graph.node if node.op_type in _SQUARES}
    nodes = [node for node in model.graph.node if node.op_type not in ("DequantizeLinear", "Constant")]
    written = [tensor for node in nodes for tensor in node.output if tensor in sizes]
    found: set[str] = set()

    def judge(tensor: str, values: Array) -> None:
        owner, terms = sums.get(tensor, (tensor, 1))
        largest = float(np.abs(values).max(initial=0.0)) * terms
        if tensor in squared:
            largest = max(largest, largest**2)
        if not largest * HEADROOM <= LARGEST or _loses(values):
            found.add(owner)

    for name, values in some.items():
        if values.dtype == np.float32:
            judge(name, values)
    for part in _parts(written, sizes):
        for tensor, values in run_graph(typed, part, some, "none").items():
            judge(tensor, values)
    return frozenset(found)


def _loses(values: Array) -> bool:
    """Whether too much of a tensor lies below float16's full digits."""
    exact = values.astype(np.float64)
    with np.errstate(over="ignore"):
        error = values.astype(np.float16) - exact
    return bool(np.square(error).sum() > LOST**2 * np.square(exact).sum())


def _with_sums(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[str, int]]]:
    """A copy with a mean of magnitudes beside every average; and, by mean, its tensor and number of summands."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shapes = {
        value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    sums: dict[str, tuple[str, int]] = {}
    for node in model.graph.node:
        if node.op_type not in _AVERAGES or not {node.input[0], node.output[0]} <= set(shapes):
            continue
        kernel = attribute(node, "kernel_shape", None)
        ratio = np.prod(shapes[node.input[0]]) / np.prod(shapes[node.output[0]])
        count = 1 if node.op_type == "ReduceSum" else int(ratio if kernel is None else np.prod(kernel))
        again = onnx.NodeProto()
        again.CopyFrom(node)
        magnitude, result = f"{node.output[0]}/magnitude", f"{node.output[0]}/sum"
        again.input[0], again.output[0], again.name = magnitude, result, result
        copy.graph.node.extend([helper.make_node("Abs", [node.input[0]], [magnitude], magnitude), again])
        sums[result] = node.output[0], max(count, 1)
        sums[magnitude] = node.input[0], 1
    return copy, sums


def _parts(tensors: list[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    """The tensors in parts that fit into PART_BYTES."""
    part: list[str] = []
    for tensor in tensors:
        if part and sum(sizes[t] for t in part) + sizes[tensor] > PART_BYTES:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part
