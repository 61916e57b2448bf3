"""Float16 where float16 can hold it, and the answers of the float32 graph."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.legalise.half import float32_layers, half_precision
from tests.sbs_deploy.graphs import float_model, qdq_model


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0])


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, 8, 8)).astype(np.float32)


def float32_tensors(model: onnx.ModelProto) -> set[str]:
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    computed = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return computed | {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def change(model: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value(numpy_helper.to_array(tensor).copy())), name))
    return model


@pytest.mark.parametrize("model", [float_model(), qdq_model("trt")], ids=["float", "quantized"])
def test_nothing_is_left_in_float32_but_the_ends(model: onnx.ModelProto) -> None:
    half = half_precision(model)
    assert not float32_tensors(half)
    ends = [*half.graph.input, *half.graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in ends] == [("input", 1), ("logits", 1)]
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2
    assert not float32_layers(model)


@pytest.mark.parametrize("model", [float_model(), qdq_model("trt")], ids=["float", "quantized"])
def test_it_answers_as_float32_does(model: onnx.ModelProto) -> None:
    expected, found = run(model, images()), run(half_precision(model), images())
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 2e-2 * scale
    assert not np.array_equal(found, expected), "it computed in another type"


def test_a_channel_without_codes_stays_zero_in_float16() -> None:
    def dead(array: np.ndarray) -> np.ndarray:
        array[3] = 0
        return array

    model = change(qdq_model("trt"), "conv2.weight", dead)
    model = change(model, "conv2.scale", lambda s: np.where(np.arange(len(s)) == 3, np.float32(1e-8), s))
    half = half_precision(model)
    assert not float32_tensors(half), "its scale says nothing"
    scales = numpy_helper.to_array(next(t for t in half.graph.initializer if t.name == "conv2.scale_fp16"))
    assert scales.min() > 0, "TensorRT refuses a scale of 0"
    assert np.abs(run(half, images()) - run(model, images())).max() < 2e-2 * np.abs(run(model, images())).max()


@pytest.mark.parametrize(
    ("name", "value"),
    [("conv2.scale", lambda s: s * np.float32(1e-5)), ("conv2.bias", lambda b: b + np.float32(1e5))],
)
def test_a_layer_that_float16_cannot_hold_stays_in_float32(name: str, value: Any) -> None:
    model = change(qdq_model("trt"), name, value)
    assert float32_layers(model) == ["conv2"]
    half = half_precision(model)
    left = float32_tensors(half)
    assert {"conv2.scale", "conv2.bias"} <= left
    assert not {"conv1.scale", "conv3.scale", "conv1_out", "conv3_out", "q_conv1_DQ_out", "q_conv3_DQ_out"} & left
    answers = run(model, images())
    assert np.abs(run(half, images()) - answers).max() < 2e-2 * np.abs(answers).max()
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
    assert kinds["conv2_out"] == TensorProto.FLOAT and kinds["conv3_out"] == TensorProto.FLOAT16


def test_layers_in_float32_come_in_the_order_of_the_graph() -> None:
    model = qdq_model("trt")
    for name in ("conv3.bias", "conv1.bias", "conv2.bias"):
        change(model, name, lambda bias: bias + np.float32(1e5))
    assert float32_layers(model) == ["conv1", "conv2", "conv3"]


def test_sizes_and_types_in_a_graph_stay_what_onnx_wants() -> None:
    nodes = [
        helper.make_node("Resize", ["input", "", "sizes"], ["big"], name="resize"),
        helper.make_node("Shape", ["big"], ["shape"], name="shape", start=1, end=2),
        helper.make_node("Cast", ["shape"], ["channels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["two"], name="two", value=numpy_helper.from_array(np.float32(2.0))),
        helper.make_node("Mul", ["channels", "two"], ["factor"], name="mul"),
        helper.make_node("Mul", ["big", "factor"], ["scaled"], name="scale"),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], name="mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.float32([1, 1, 2, 2]), "sizes"),
            numpy_helper.from_array(np.int64([2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    half = half_precision(model)
    assert float32_tensors(half) == {"sizes"}
    np.testing.assert_allclose(run(half, images()), run(model, images()), rtol=1e-2, atol=1e-2)


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_an_epsilon_stays_above_zero() -> None:
    nodes = [
        helper.make_node("ReduceL2", ["input", "axes"], ["norm"], name="norm"),
        helper.make_node("Clip", ["norm", "epsilon"], ["bounded"], name="clip"),
        helper.make_node("Div", ["input", "bounded"], ["logits"], name="divide"),
    ]
    half = half_precision(graph_of(nodes, {"axes": np.int64([1]), "epsilon": np.float32(1e-12)}))
    found = run(half, np.zeros((1, 3, 8, 8), np.float32))
    assert np.isfinite(found).all()


def test_operands_of_additions_with_small_steps_stay_in_float32() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["codes"], name="quantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["left"], name="dequantize"),
        helper.make_node("Add", ["left", "input"], ["logits"], name="add"),
    ]
    model = graph_of(nodes, {"scale": np.float32(4e-6), "zero": np.int8(0)})
    assert float32_layers(model) == ["add"]
    np.testing.assert_allclose(run(half_precision(model), images()), run(model, images()), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("column", "kept"), [(1e-6, ["product"]), (1.0, [])])
def test_channels_of_a_square_product_are_its_columns(column: float, kept: list[str]) -> None:
    codes = np.zeros((8, 8), np.int8)
    codes[0, 3] = 100
    scale = np.where(np.arange(8) == 3, column, 1e-7).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], name="dequantize", axis=1),
        helper.make_node("MatMul", ["input", "weight"], ["logits"], name="product"),
    ]
    model = graph_of(nodes, {"codes": codes, "scale": scale})
    assert float32_layers(model) == kept
    expected = run(model, images())
    np.testing.assert_allclose(run(half_precision(model), images()), expected, atol=2e-3 * np.abs(expected).max())


def test_constants_in_attributes() -> None:
    nodes = [
        helper.make_node("Constant", [], ["half"], name="half", value_float=0.5),
        helper.make_node("Mul", ["input", "half"], ["logits"], name="mul"),
    ]
    model = graph_of(nodes, {})
    np.testing.assert_allclose(run(half_precision(model), images()), run(model, images()), rtol=1e-2, atol=1e-2)
