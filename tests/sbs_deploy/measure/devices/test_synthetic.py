"""The quantized graph of a float one."""

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT, TENSORRT_RTX
from sbs_deploy.graph.quantized import quantized_convolutions
from sbs_deploy.measure.devices.networks import Variant
from tests.sbs_deploy.measure.devices.networks import CLASSES, SIZE, residual_network

NETWORK = residual_network()
LAYERS = {"stem", "expand", "depthwise", "project", "branch", "head"}


def variant(**kept: int) -> Variant:
    axes = {layer.name: NETWORK.axes.root(layer.channels_out) for layer in NETWORK.axes.layers}
    return Variant(counts={axes[name]: count for name, count in kept.items()})


def test_onnxruntime_runs_every_layer_in_integers() -> None:
    ort = pytest.importorskip("onnxruntime")
    model = NETWORK.graph(variant(stem=8, expand=16), ONNXRUNTIME)
    assert {node.name for node in quantized_convolutions(model)} == LAYERS - {"head"}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 7, "six inputs, of which one is an operand too, and the other operand"
    session = ort.InferenceSession(model.SerializeToString())
    (logits,) = session.run(None, {"input": np.ones((1, 3, SIZE, SIZE), np.float32)})
    assert logits.shape == (1, CLASSES) and np.ptp(logits) > 0


@pytest.mark.parametrize(("backend", "left"), [(TENSORRT, set()), (TENSORRT_RTX, {"depthwise"})])
def test_tensorrt_gets_its_dialect_in_half_precision(backend, left: set[str]) -> None:  # type: ignore[no-untyped-def]
    model = NETWORK.graph(variant(stem=8), backend)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {name for name in LAYERS if types.get(f"{name}.weight") == onnx.TensorProto.INT8} == LAYERS - left
    assert all(types[f"{name}.weight_fp16"] == onnx.TensorProto.FLOAT16 for name in left)
    assert onnx.TensorProto.UINT8 not in types.values()


def test_layers_in_float_are_not_quantized_and_the_whole_in_float_is_plain() -> None:
    axes = NETWORK.axes
    mixed = NETWORK.graph(Variant(counts={}, in_float=frozenset({"depthwise", "branch"})), ONNXRUNTIME)
    assert {node.name for node in quantized_convolutions(mixed)} == LAYERS - {"head", "depthwise", "branch"}
    plain = NETWORK.graph(Variant(counts={}, in_float=frozenset(layer.name for layer in axes.layers)), ONNXRUNTIME)
    assert not any("QuantizeLinear" in node.op_type for node in plain.graph.node)
