"""Constant factors behind convolutions, such as ConvNeXt's layer scale, folded into the scales of the weights.

A factor between a convolution and what quantizes its result keeps both in float: ONNX Runtime runs a convolution in
integers only if a quantizer reads its result. Codes change by their sign alone, so folding is exact.

Shapes: codes_OIHW; factor_O, scale_O and bias_O one number an output channel.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.graph.edit import constant, input_name
from sbs_deploy.graph.names import layer_of
from sbs_train.contract.grid import range_quantizer


def with_folded_factors(slim: onnx.ModelProto, codes: Codes) -> tuple[onnx.ModelProto, Codes]:
    """Copies of a slim float graph and its codes without the factors that alone read a quantized convolution."""
    model, layers = ir.from_proto(slim), dict(codes.layers)
    for node in list(model.graph):
        operands = list(node.inputs)
        for y, factor in (operands, operands[::-1]) if node.op_type == "Mul" else ():
            conv = y.producer() if y is not None else None
            name = layer_of(input_name(conv, 1)) if conv is not None and conv.op_type == "Conv" else None
            if y is None or conv is None or name not in layers or len(y.uses()) != 1:
                continue
            if conv.inputs[1] is not None and len(conv.inputs[1].uses()) > 1:
                continue  # the layer runs several times, and the factor stands behind one call
            factor_O = _by_channel(factor, len(layers[name].scale_O))
            if factor_O is None or y.is_graph_output() or node.outputs[0].is_graph_output():
                continue
            layers[name] = _scaled(layers[name], factor_O)
            _scale(model.graph, conv, name, factor_O)
            ir.convenience.replace_all_uses_with(node.outputs[0], y)
            model.graph.remove(node, safe=True)
    return ir.to_proto(model), replace(codes, layers=layers)


def _by_channel(factor: ir.Value | None, channels: int) -> npt.NDArray[np.float32] | None:
    """A constant factor of feature maps (N, O, H, W) as one number a channel; None if it is none, or has a zero."""
    tensor = None if factor is None else ir.convenience.get_const_tensor(factor)
    if tensor is None or not (tensor.size == 1 or tuple(tensor.shape.numpy())[-3:] == (channels, 1, 1)):
        return None
    values = tensor.numpy().reshape(-1).astype(np.float32)
    return np.broadcast_to(values, channels) if np.all(np.isfinite(values) & (values != 0)) else None


def _scaled(layer: QuantizedLayer, factor_O: npt.NDArray[np.float32]) -> QuantizedLayer:
    sign_O = np.sign(factor_O).astype(np.int8).reshape(-1, *[1] * (layer.codes.ndim - 1))
    output = layer.output
    if output is not None:  # by channels no more is known than the range of all
        ends = [factor * output.step * code for factor in factor_O for code in (output.code_min, output.code_max)]
        output = range_quantizer(min(ends), max(ends))
    scale_O = (layer.scale_O * np.abs(factor_O)).astype(np.float32)
    return replace(layer, codes=layer.codes * sign_O, scale_O=scale_O, output=output)


def _scale(graph: ir.Graph, conv: ir.Node, name: str, factor_O: npt.NDArray[np.float32]) -> None:
    """Multiply a convolution's weights and bias; other layers may share the tensors."""
    for index, old in enumerate(conv.inputs[1:], 1):
        tensor = None if old is None else ir.convenience.get_const_tensor(old)
        assert tensor is not None
        values = tensor.numpy()
        scaled = (values * factor_O.reshape(-1, *[1] * (values.ndim - 1))).astype(values.dtype)
        if index == 1:
            graph.initializers[f"{name}.weight"].const_value = ir.Tensor(scaled, name=f"{name}.weight")
        else:
            conv.replace_input_with(index, constant(graph, f"{name}.bias_scaled", scaled))
