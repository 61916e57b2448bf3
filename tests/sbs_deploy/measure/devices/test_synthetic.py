"""The quantized graph of a float one, and tensors with several readers."""

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT, TENSORRT_RTX
from sbs_deploy.graph.quantized import quantized_convolutions
from sbs_deploy.measure.devices.channels import with_shapes
from sbs_deploy.measure.devices.networks import Variant
from sbs_deploy.measure.devices.synthetic import owners_of, shared_tensors, split_bits
from sbs_train.contract.device import SharedTensor
from tests.sbs_deploy.measure.devices.networks import CLASSES, SIZE, residual_graph, residual_network

NETWORK = residual_network()
LAYERS = {"stem", "expand", "depthwise", "project", "branch", "head"}


def variant(*, split: bool = False, **kept: int) -> Variant:
    axes = {layer.name: NETWORK.axes.root(layer.channels_out) for layer in NETWORK.axes.layers}
    bits = split_bits(NETWORK.shared) if split else {}
    return Variant(kept={axes[name]: count for name, count in kept.items()}, bits=bits, held_out=False)


def test_the_tensor_that_a_layer_and_an_addition_read_is_shared() -> None:
    assert shared_tensors(with_shapes(residual_graph())) == [
        SharedTensor(owners=["stem"], readers=["expand"], added=True)
    ]


def test_two_readers_share_without_an_addition_too_and_owners_stop_at_shared_tensors() -> None:
    graph = residual_graph()
    extra = onnx.helper.make_node("Conv", ["y", "branch2.weight"], ["b2"], "branch2")
    weight = onnx.numpy_helper.from_array(np.ones((8, 16, 1, 1), np.float32), "branch2.weight")
    graph.graph.initializer.append(weight)
    graph.graph.node.insert(11, extra)
    shared = shared_tensors(with_shapes(graph))
    assert shared[1] == SharedTensor(owners=["project"], readers=["branch", "branch2"], added=False)
    assert split_bits(shared) == {"expand": 4, "branch": 4}


def test_every_tensor_belongs_to_the_last_layer_before_it() -> None:
    owners = owners_of(residual_graph())
    assert owners["x"] == "stem" and owners["a"] == owners["y"] == "project" and owners["f"] == "branch"
    assert owners["input"] is None and "stem.weight" not in owners


@pytest.mark.parametrize("split", [False, True])
def test_onnxruntime_runs_every_layer_in_integers(split: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = NETWORK.graph(variant(split=split, stem=8, expand=16), ONNXRUNTIME)
    assert {node.name for node in quantized_convolutions(model)} == LAYERS - {"head"}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 7 + split, "six inputs, of which one is an operand too, and the other operand"
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
