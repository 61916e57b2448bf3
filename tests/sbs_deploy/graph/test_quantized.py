import onnx

from sbs_deploy.backends.onnxruntime.profile import integer_layers
from sbs_deploy.graph.quantized import quantized_layers
from tests.sbs_deploy.graphs import CONVOLUTIONS, float_model, qdq_model


def test_quantized_layers_with_their_weights() -> None:
    assert quantized_layers(qdq_model("ort")) == {name: f"{name}.weight" for name in CONVOLUTIONS}
    assert quantized_layers(float_model()) == {}


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
    assert quantized_layers(model) == {"first": "codes", "last": "codes"}


def test_integer_layers_are_found_by_weights_or_by_name() -> None:
    wanted = quantized_layers(qdq_model("ort"))
    by_weight = onnx.helper.make_node("QLinearConv", ["x", "s", "z", "conv1.weight_s8_2_u8"], ["y"], name="other")
    by_name = onnx.helper.make_node("QLinearConv", ["y", "s", "z", "renamed"], ["w"], name="conv2_token_12")
    stranger = onnx.helper.make_node("QLinearConv", ["y", "s", "z", "q"], ["v"], name="conv22")
    in_float = onnx.helper.make_node("FusedConv", ["y", "conv3.weight"], ["u"], name="conv3")

    def graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))

    assert integer_layers(graph(by_weight, by_name, in_float), wanted) == ["conv1", "conv2"]
    assert integer_layers(graph(by_name, stranger), wanted) == ["conv2"]
