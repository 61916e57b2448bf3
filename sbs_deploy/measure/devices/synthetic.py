"""A float graph as `build --engine int8` would execute it, its integers made up: no time depends on them. No torch.

Grids are those of an 8-bit plan; below 8 bits a backend executes the same, with two exceptions. A tensor has several
readers: those that want it at different bits cannot share one quantizer. And products of 8 bits that saturate, see
backends/products.py: an input with a sign needs slower kernels unless it is coarse.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from sbs_deploy.backends.spec import Backend
from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.qdq import quantized_onnx, stored_codes
from sbs_deploy.graph.edit import not_negative
from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.names import LAYER_OPS, QUANTIZED_OPS, layer_of, owner_of
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.measure.devices.channels import Axes, shapes_of
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.device import COARSE_BITS, SharedTensor
from sbs_train.contract.grid import Quantizer

FEWER_BITS = 4
"""What one reader wants of a tensor whose other readers want 8 bits."""
_STEP = 0.02
_SCALE = 0.01
_UNSIGNED = {INT8_BITS: 127, FEWER_BITS: 15, COARSE_BITS: 3}
"""Largest codes of the nested grids."""
_SIGNED = {INT8_BITS: (-128, 127), FEWER_BITS: (-7, 7), COARSE_BITS: (-1, 1)}


def shared_tensors(model: onnx.ModelProto) -> list[SharedTensor]:
    """Every tensor of a float graph that two layers or more read, or one and an addition; the image is none."""
    layers = _layers(model)
    adds = {name for node in _additions(model) for name in node.input}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.output[0] in layers:
            readers.setdefault(node.input[0], []).append(layers[node.output[0]])
    shared = {tensor: names for tensor, names in readers.items() if len(names) + (tensor in adds) > 1}
    makers = makers_of(model)

    def owners(tensor: str) -> dict[str, None]:
        """Layers that the tensor comes from, no further back than the shared tensors before it."""
        node = makers.get(tensor)
        if node is None:
            return {}
        if node.output[0] in layers:
            return {layers[node.output[0]]: None}
        found: dict[str, None] = {}
        for name in node.input:
            found |= {} if name in shared else owners(name)
        return found

    return [
        SharedTensor(owners=list(found), readers=names, added=tensor in adds)
        for tensor, names in shared.items()
        if (found := owners(tensor))
    ]


def owners_of(model: onnx.ModelProto) -> dict[str, str | None]:
    """The layer that each tensor comes from, by tensor: the last of those before it; None in front of the first.

    What comes from constants alone is left out.
    """
    layers = _layers(model)
    place = {value.name: -1 for value in model.graph.input}
    names = [layers.get(node.output[0]) for node in model.graph.node]
    for index, (node, name) in enumerate(zip(model.graph.node, names, strict=True)):
        before = [place[tensor] for tensor in node.input if tensor in place]
        if name is not None or before:
            place |= dict.fromkeys(node.output, index if name is not None else max(before))
    return {tensor: names[index] if index >= 0 else None for tensor, index in place.items()}


def split_bits(shared: list[SharedTensor]) -> dict[str, int]:
    """Bits of inputs with which every shared tensor has readers that differ."""
    return {tensor.readers[0]: FEWER_BITS for tensor in shared}


def coarse_bits(model: onnx.ModelProto) -> dict[str, int]:
    """COARSE_BITS for every layer whose input has a sign, but the first: its bits are not searched."""
    typed, layers, owners = ir.from_proto(model), _layers(model), owners_of(model)
    found = {}
    for node in typed.graph:
        name, x = layers.get(node.outputs[0].name or ""), node.inputs[0]
        if name is not None and x is not None and owners.get(x.name or "") is not None and not not_negative(x):
            found[name] = COARSE_BITS
    return found


def owners_that_differ(shared: list[SharedTensor], bits: Mapping[str, int]) -> set[str]:
    """Layers whose output is a shared tensor that is wanted at different bits; 8 where `bits` names none."""
    return {
        name
        for tensor in shared
        if len({bits.get(reader, INT8_BITS) for reader in tensor.readers} | ({INT8_BITS} if tensor.added else set()))
        > 1
        for name in tensor.owners
    }


def quantized(
    slim: onnx.ModelProto, axes: Axes, backend: Backend, bits: Mapping[str, int], seed: int = 0
) -> onnx.ModelProto:
    """The graph that the backend executes, every layer quantized that it quantizes; the others in its float type.

    Args:
        bits: of the inputs of layers that do not have 8.
    """
    rng = np.random.default_rng(seed)
    dialect = ORT if backend.dialect == "ort" else TRT
    typed = ir.from_proto(slim)
    weights = typed.graph.initializers
    float_layers = {"depthwise"} if backend.depthwise == "fp16" else set()
    wanted = {layer.name for layer in axes.layers if layer.kind not in float_layers}
    layers: dict[str, QuantizedLayer] = {}
    for node in typed.graph:
        weight = node.inputs[1] if node.op_type in QUANTIZED_OPS and len(node.inputs) > 1 else None
        name = layer_of(weight.name or "") if weight is not None else None
        if weight is None or weight.name not in weights or name is None or name not in wanted or name in layers:
            continue
        if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
            continue
        assert weight.const_value is not None and node.inputs[0] is not None
        shape = stored_codes(node.op_type, weight.const_value.numpy()).shape
        layers[name] = QuantizedLayer(
            codes=rng.integers(-127, 128, shape).astype(np.int8),
            scale_O=np.full(shape[0], _SCALE, np.float32),
            input=_quantizer(not not_negative(node.inputs[0]), bits.get(name, INT8_BITS)),
        )
    values = _values(typed.graph)

    def operand(name: str) -> Quantizer:
        return _quantizer(not not_negative(values[name]), INT8_BITS)

    adds = {node.output[0]: (operand(node.input[0]), operand(node.input[1])) for node in _additions(slim)}
    snapped = _with_biases_on_grid(slim, set(layers))
    model = quantized_onnx(snapped, Codes(layers=layers, adds=adds), dialect, plan_sha256="made up")
    return half_precision(model) if backend.float_type == "fp16" else model


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name or "": value for value in (*graph.inputs, *(out for node in graph for out in node.outputs))}


def _quantizer(signed: bool, bits: int) -> Quantizer:
    low, high = _SIGNED[bits] if signed else (0, _UNSIGNED[bits])
    return Quantizer(step=_STEP * _UNSIGNED[INT8_BITS] / high, code_min=low, code_max=high)


def _with_biases_on_grid(model: onnx.ModelProto, layers: set[str]) -> onnx.ModelProto:
    """The biases of `layers` zero, which lies on every grid."""
    snapped = onnx.ModelProto()
    snapped.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in snapped.graph.initializer}
    for node in snapped.graph.node:
        if node.op_type in QUANTIZED_OPS and len(node.input) > 2 and owner_of(node.input[1]) in layers:
            bias = tensors.get(node.input[2])
            if bias is not None:
                bias.CopyFrom(numpy_helper.from_array(np.zeros(tuple(bias.dims), np.float32), bias.name))
    return snapped


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """Names of layers by what they write, in a float graph or a quantized one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        if node.op_type in LAYER_OPS:
            weight = stored.get(node.input[1], node.input[1])
            if weight in constants:
                found[node.output[0]] = owner_of(weight)
    return found


def _additions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Residual additions: of two computed tensors of one shape, with three axes or more."""
    shapes, constants = shapes_of(model), {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Add"
        and not constants.intersection(node.input)
        and len(shapes.get(node.input[0], ())) >= 3
        and shapes[node.input[0]] == shapes.get(node.input[1])
    ]
