"""A float graph as `build --engine int8` would execute it, with invented codes, which change no time. No torch.

Grids are 8-bit ones, as backends compute fewer bits in 8 bits.
"""

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from sbs_deploy.backends.spec import Backend
from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import DIALECTS
from sbs_deploy.export.qdq import quantized_onnx, stored_codes
from sbs_deploy.graph.edit import not_negative
from sbs_deploy.graph.names import QUANTIZED_OPS, layer_of, owner_of
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.measure.devices.channels import Axes, shapes_of
from sbs_train.contract.grid import Quantizer

_STEP = 0.02
_SCALE = 0.01


def quantized(slim: onnx.ModelProto, axes: Axes, backend: Backend, in_float: Collection[str] = ()) -> onnx.ModelProto:
    """The graph that the backend executes: quantized layers where supported, all other layers in its float type.

    Args:
        in_float: layers that stay in float.
    """
    rng = np.random.default_rng(0)
    dialect = DIALECTS[backend.dialect]
    typed = ir.from_proto(slim)
    weights = typed.graph.initializers
    float_layers = {"depthwise"} if backend.depthwise == "fp16" else set()
    wanted = {layer.name for layer in axes.layers if layer.kind not in float_layers and layer.name not in in_float}
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
            input=_quantizer(node.inputs[0]),
        )
    values = _values(typed.graph)
    adds = {
        node.output[0]: (_quantizer(values[node.input[0]]), _quantizer(values[node.input[1]]))
        for node in _additions(slim)
    }
    snapped = _with_biases_on_grid(slim, set(layers))
    model = quantized_onnx(snapped, Codes(layers=layers, adds=adds), dialect, plan_sha256="made up")
    return half_precision(model) if backend.float_type == "fp16" else model


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name or "": value for value in (*graph.inputs, *(out for node in graph for out in node.outputs))}


def _quantizer(tensor: ir.Value) -> Quantizer:
    signed = not not_negative(tensor)
    return Quantizer(step=_STEP, code_min=-128 if signed else 0, code_max=127)


def _with_biases_on_grid(model: onnx.ModelProto, layers: set[str]) -> onnx.ModelProto:
    """A copy whose biases of `layers` are zero, which lies on every grid."""
    snapped = onnx.ModelProto()
    snapped.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in snapped.graph.initializer}
    for node in snapped.graph.node:
        if node.op_type in QUANTIZED_OPS and len(node.input) > 2 and owner_of(node.input[1]) in layers:
            bias = tensors.get(node.input[2])
            if bias is not None:
                bias.CopyFrom(numpy_helper.from_array(np.zeros(tuple(bias.dims), np.float32), bias.name))
    return snapped


def _additions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Residual additions: two computed tensors of equal shape, with three axes or more."""
    shapes, constants = shapes_of(model), {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Add"
        and not constants.intersection(node.input)
        and len(shapes.get(node.input[0], ())) >= 3
        and shapes[node.input[0]] == shapes.get(node.input[1])
    ]
