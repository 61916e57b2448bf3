import onnx

from sbs_deploy.backends.onnxruntime.profile import integer_convolutions
from sbs_deploy.graph.quantized import (
    fusable_convolutions,
    quantized_convolutions,
    quantized_layers,
)
from tests.sbs_deploy.graphs import CONVOLUTIONS, FUSABLE, float_model, qdq_model


def test_quantized_and_fusable_convolutions() -> None:
    model = qdq_model("ort")
    assert [conv.name for conv in quantized_convolutions(model)] == CONVOLUTIONS
    assert [conv.name for conv in fusable_convolutions(model)] == FUSABLE


def test_float_convolutions_do_not_count() -> None:
    assert quantized_convolutions(float_model()) == [] and quantized_layers(float_model()) == []


def test_matrix_products_are_layers_too() -> None:
    """With one operand in float, as in attention, they are not quantized."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 4] input) => (float[n, 2] logits) <float s = {0.1}, int8 z = {0}>
        {
          q = QuantizeLinear(input, s, z)
          x = DequantizeLinear(q, s, z)
          v = DequantizeLinear(codes, s)
          [first] y = MatMul(x, v)
          [attention] a = MatMul(y, v)
          [last] logits = Gemm <transB = 1> (x, v)
        }"""
    )
    assert quantized_layers(model) == ["first", "last"]
    assert quantized_layers(qdq_model("trt")) == CONVOLUTIONS


def test_a_result_with_a_second_reader_has_no_integer_form() -> None:
    model = qdq_model("ort")
    model.graph.node.append(onnx.helper.make_node("Identity", ["conv1_relu_out"], ["also"], name="also"))
    assert [conv.name for conv in fusable_convolutions(model)] == ["conv2"]


def test_a_graph_output_has_to_stay_float() -> None:
    model = qdq_model("ort")
    model.graph.output.append(onnx.helper.make_tensor_value_info("conv2_out", onnx.TensorProto.FLOAT, None))
    assert [conv.name for conv in fusable_convolutions(model)] == ["conv1"]


def test_integer_convolutions_are_found_by_weights_or_by_name() -> None:
    wanted = fusable_convolutions(qdq_model("ort"))
    by_weight = onnx.helper.make_node("QLinearConv", ["x", "s", "z", "conv1.weight_s8_2_u8"], ["y"], name="other")
    by_name = onnx.helper.make_node("QLinearConv", ["y", "s", "z", "renamed"], ["w"], name="conv2_token_12")
    stranger = onnx.helper.make_node("QLinearConv", ["y", "s", "z", "q"], ["v"], name="conv22")

    def graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))

    assert integer_convolutions(graph(by_weight, by_name), wanted) == FUSABLE
    assert integer_convolutions(graph(by_name, stranger), wanted) == ["conv2"]
