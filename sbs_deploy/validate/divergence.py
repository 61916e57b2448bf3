"""Find the first layer of a graph, in order of execution, whose result differs."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from sbs_deploy.export.golden_file import GoldenArrays
from sbs_deploy.graph.arrays import Array, Named, input_specs, repeated, samples_of
from sbs_deploy.graph.comparison import ROUNDING
from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.names import QUANTIZED_OPS, call_name, called, owner_of
from sbs_deploy.graph.run import relative_error, run_graph
from sbs_deploy.legalise.single import precisions

DIVERGENCE = 1e-2
"""Relative root mean square error above which a layer differs."""
INTEGER_DIVERGENCE = 0.3
"""Error above which a layer on integer kernels differs: these round the bias to the accumulator's grid, and on coarse
grids a single changed rounding is a large step, of which deep networks have many."""
INTEGER_SAMPLES = 250
DIFFERENCE = 1e-4
"""Error above which a layer differs between two float graphs without quantizers."""
DIFFERENCE_SAMPLES = 8


def first_divergence(model: onnx.ModelProto, golden: GoldenArrays) -> str | None:
    """The first layer of the graph whose float result differs from PyTorch's; None if none does."""
    taps = golden.taps
    outputs = {name: _written(model, node) for name, node in layers_of(model) if name in taps}
    if not outputs:
        return None
    found = run_graph(model, list(outputs.values()), golden.first_inputs(golden.tapped), "none")
    return next((name for name, tensor in outputs.items() if _differs(found[tensor], taps[name])), None)


def first_difference(model: onnx.ModelProto, reference: onnx.ModelProto, inputs: Named) -> str | None:
    """The first layer of the reference that a float graph computes differently, or lacks; None if none does."""
    wanted = {name: _written(reference, node) for name, node in layers_of(reference)}
    outputs = {name: _written(model, node) for name, node in layers_of(model)}
    specs = input_specs(reference)
    some = repeated(inputs, specs, min(DIFFERENCE_SAMPLES, samples_of(inputs, specs)))
    expected = run_graph(reference, list(wanted.values()), some, "none")
    found = run_graph(model, list(outputs.values()), some, "none")
    return next(
        (n for n, t in wanted.items() if n not in outputs or _differs(found[outputs[n]], expected[t], DIFFERENCE)), None
    )


def first_integer_divergence(path: Path, golden: GoldenArrays) -> str | None:
    """The first layer whose input codes differ between integer kernels and Q/DQ in float.

    Compares codes, not results: an output between a convolution and its QuantizeLinear would prevent their fusion.
    """
    model = load_onnx(path)
    makers = makers_of(model)
    inputs = {name: makers[node.input[0]].input[0] for name, node in layers_of(model) if node.input[0] in makers}
    some = golden.first_inputs(INTEGER_SAMPLES)
    tensors = sorted(set(inputs.values()))
    expected, found = (run_graph(model, tensors, some, level) for level in ("none", "all"))
    return next(
        (name for name, tensor in inputs.items() if _differs(found[tensor], expected[tensor], INTEGER_DIVERGENCE)), None
    )


def first_engine_divergence(
    model: onnx.ModelProto, inputs: Named, run: Callable[[onnx.ModelProto, Named], Named]
) -> str | None:
    """The first layer whose result differs between an engine and its graph by more than rounding; None if none does.

    Rounding grows with depth; its size is measured by rounding the graph at every node.

    Args:
        model: the graph that the engine was built from.
        run: builds an engine of a graph, runs it and returns all outputs by name. Layers' results become outputs of
            that graph, which prevents some fusions: an error in a fusion alone is not found.
    """
    watched, outputs = with_layer_outputs(model)
    expected, rounded = (run_graph(one, list(outputs.values()), inputs, "none") for one in precisions(watched))
    found = run(watched, inputs)
    for name, tensor in outputs.items():
        noise = relative_error(rounded[tensor], expected[tensor])
        if _differs(found[tensor], expected[tensor], max(DIVERGENCE, ROUNDING * noise)):
            return name
    return None


def with_layer_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy with the results of all layers as float32 outputs; and the names of these outputs by layer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names: dict[str, str] = {}
    for name, node in layers_of(model):
        names[name] = f"{name}/result"
        written = _written(model, node)
        copy.graph.node.append(helper.make_node("Cast", [written], [names[name]], names[name], to=TensorProto.FLOAT))
        copy.graph.output.append(helper.make_tensor_value_info(names[name], TensorProto.FLOAT, None))
    return copy, names


def layers_of(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """(name of the call, node) of every convolution and linear layer in graph order; the weights name the layer."""
    makers, calls = makers_of(model), Counter[str]()
    for node in model.graph.node:
        if node.op_type in QUANTIZED_OPS:
            weight = node.input[1]
            weight = makers[weight].input[0] if weight in makers else weight
            layer = owner_of(weight)
            yield str(node.name) if called(node.name) == layer else call_name(layer, calls[layer]), node
            calls[layer] += 1


def _written(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The tensor of a layer's result, including the Add of a MatMul's bias."""
    constants = {tensor.name for tensor in model.graph.initializer}
    output = str(node.output[0])
    if node.op_type == "MatMul":
        for reader in model.graph.node:
            if reader.op_type == "Add" and output in reader.input and constants.intersection(reader.input):
                return str(reader.output[0])
    return output


def _differs(found: Array, expected: Array, threshold: float = DIVERGENCE) -> bool:
    """Whether the relative root mean square error exceeds the threshold; True for NaN and another shape."""
    return found.shape != expected.shape or not relative_error(found, expected) <= threshold
