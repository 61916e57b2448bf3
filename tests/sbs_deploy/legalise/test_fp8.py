"""FP8 against ml_dtypes' own rounding."""

from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.legalise.fp8 import fp8_from_int8
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import qdq_model


def quantizer(scale: float, clip: float | None) -> onnx.ModelProto:
    """x → [Clip] → Q → DQ."""
    nodes = [] if clip is None else [helper.make_node("Clip", ["input", "low", "high"], ["clipped"], name="c")]
    x = "input" if clip is None else "clipped"
    nodes += [
        helper.make_node("QuantizeLinear", [x, "scale", "zero"], ["codes"], name="q"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["logits"], name="dq"),
    ]
    tensors = {"scale": np.float32(scale), "zero": np.int8(0)}
    if clip is not None:
        tensors |= {"low": np.float32(-clip), "high": np.float32(clip)}
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


@given(scale=st.floats(1e-3, 1.0), bits=st.sampled_from([3, 4, 8]))
def test_activations_saturate_where_int8_does(scale: float, bits: int) -> None:
    last = 2 ** (bits - 1) - 1
    model = fp8_from_int8(quantizer(scale, None if bits == 8 else np.float32(scale) * last))
    x = np.linspace(-3, 3, 97, dtype=np.float32) * np.float32(scale * last)
    limit = np.float32(scale) * last
    step = np.float32(scale) * np.float32(127 / 448) if bits == 8 else np.float32(scale)
    expected = (np.clip(x, -limit, limit) / step).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6 * scale)


def without_integer_clip() -> onnx.ModelProto:
    model = qdq_model("trt")
    clip = next(node for node in model.graph.node if node.op_type == "Clip")
    reader = next(node for node in model.graph.node if clip.output[0] in node.input)
    reader.input[0] = clip.input[0]
    model.graph.node.remove(clip)
    return model


def test_weights_of_few_bits_are_exact() -> None:
    model = fp8_from_int8(without_integer_clip())
    before = {t.name: numpy_helper.to_array(t) for t in qdq_model("trt").graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("conv1", "conv2", "conv3"):
        np.testing.assert_array_equal(after[f"{name}.weight"].astype(np.float32), before[f"{name}.weight"])
        np.testing.assert_array_equal(after[f"{name}.scale"], before[f"{name}.scale"])


def test_weights_of_eight_bits_keep_four_digits() -> None:
    model = without_integer_clip()
    tensor = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    codes = np.resize(np.arange(-127, 128), tensor.dims).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    after = next(t for t in fp8_from_int8(model).graph.initializer if t.name == "conv1.weight")
    assert after.data_type == TensorProto.FLOAT8E4M3FN
    error = np.abs(numpy_helper.to_array(after).astype(np.float32) - codes)
    assert error.max() > 0 and np.all(error <= np.abs(codes.astype(np.float32)) / 16)


@pytest.mark.parametrize("dialect", ["ort", "trt"])
def test_only_a_symmetric_graph_without_integer_clips_becomes_fp8(dialect: Literal["trt", "ort"]) -> None:
    with pytest.raises(SbsError, match="trt dialect"):
        fp8_from_int8(qdq_model(dialect))
