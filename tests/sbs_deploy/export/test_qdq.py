"""The pass in isolation: graphs as ONNX text, executed by ONNX Runtime and by onnx's reference, against NumPy."""

from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer, load_codes, save_codes
from sbs_deploy.export.dialects import ORT, TRT, Dialect
from sbs_deploy.export.qdq import quantized_onnx
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import activation_role, make_grid
from tests.sbs_deploy.export.text_graphs import HEAD, count, execute, graph, insert, layer, quantizer

DIALECTS = st.sampled_from([TRT, ORT])
ONE_CONV = (
    HEAD
    + """
g (float[N,2,4,4] input) => (float[N,3,2,2] logits) {
    y = Conv (input, w, b)
    logits = Relu (y)
}"""
)
FUSED = (
    HEAD
    + """
g (float[N,2,4,4] input) => (float[N,2,2,2] logits) {
    y = Conv (input, w, b)
    z = Relu (y)
    logits = Conv (z, v)
}"""
)
SHARED = (
    HEAD
    + """
g (float[N,2,4,4] input) => (float[N,2,4,4] logits) {
    x = Relu (input)
    p = Conv (x, w1)
    q = Conv (x, w2)
    r = Conv (x, w3)
    s = Add (p, q)
    logits = Add (s, r)
}"""
)
ADDITION = """
g (float[N,2,4,4] input) => (float[N,2,4,4] logits) <float[N,2,4,4] x, float[N,2,4,4] y> {
    x = Relu (input)
    y = Tanh (input)
    s = Add (x, y)
    logits = Add (s, one)
}"""
LINEAR = (
    HEAD
    + """
g (float[N,6] input) => (float[N,3] logits) {
    logits = Gemm <transB = 1> (input, w, b)
}"""
)


def conv3x3(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


@settings(max_examples=60)
@given(
    dialect=DIALECTS,
    signed=st.booleans(),
    bits_a=st.sampled_from([2, 4, 8]),
    bits_w=st.sampled_from([2, 4, 8]),
    step=st.floats(1e-3, 10),
    on_grid=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_convolution_equals_numpy(
    dialect: Dialect, signed: bool, bits_a: int, bits_w: int, step: float, on_grid: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    level = make_grid(activation_role(signed), (2, 4, 8)).level(bits_a)
    codes_OIHW = rng.choice(make_grid("weight", (2, 4, 8)).level(bits_w).codes(), (3, 2, 3, 3))
    quantized = layer(codes_OIHW, level, step=step)
    step_a = np.float32(step)
    b = rng.normal(0, 20 * step, 3).astype(np.float32)
    if on_grid:
        b = (np.rint(b / (step_a * quantized.scale_O)) * (step_a * quantized.scale_O)).astype(np.float32)
    # Values beyond both ends, and none so near a rounding boundary that float32 decides.
    reach = rng.integers(-300, 300, (5, 2, 4, 4)) + rng.uniform(-0.4, 0.4, (5, 2, 4, 4))
    x = (reach * step).astype(np.float32)
    model = graph(ONE_CONV, w=np.zeros((3, 2, 3, 3), np.float32), b=b)
    result = insert(model, {"w": quantized}, dialect)

    codes = np.clip(np.rint(reach), level.code_min, level.code_max)
    weight = codes_OIHW * quantized.scale_O.astype(np.float64)[:, None, None, None]
    expected = np.maximum(conv3x3(codes * float(step_a), weight) + b[:, None, None].astype(np.float64), 0)
    tolerance = 1e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(execute(result, x), expected, atol=tolerance)
    reference = onnx.reference.ReferenceEvaluator(result).run(None, {"input": x})[0]
    np.testing.assert_allclose(reference, expected, atol=tolerance)
    assert ("Conv" in [n.op_type for n in result.graph.node]) and count(result, "Clip") <= 1
    integers = {t.name: t.data_type for t in result.graph.initializer}
    assert integers["w.weight"] == onnx.TensorProto.INT8
    assert ("w.bias_codes" in integers) == (on_grid and dialect is ORT)


@pytest.mark.parametrize(
    ("dialect", "signed", "bits", "after_relu", "clips"),
    [
        # The container's own range needs no Clip: 0..127 of int8 behind a Relu.
        (TRT, False, 8, True, 0),
        (TRT, False, 8, False, 1),
        (TRT, False, 4, True, 1),
        (TRT, True, 8, False, 0),  # signed codes reach down to -128
        (ORT, False, 8, True, 1),  # uint8 goes on to 255
        (ORT, True, 8, False, 0),
        (ORT, False, 2, True, 1),
    ],
)
def test_where_a_clip_is_needed(dialect: Dialect, signed: bool, bits: int, after_relu: bool, clips: int) -> None:
    level = make_grid(activation_role(signed), (2, 4, 8)).level(bits)
    text = SHARED if after_relu else SHARED.replace("Relu", "Tanh")
    weights = {f"w{i}": np.zeros((2, 2, 1, 1), np.float32) for i in (1, 2, 3)}
    result = insert(graph(text, **weights), {"w1": layer(np.ones((2, 2, 1, 1)), level)}, dialect)
    assert count(result, "Clip") == clips
    order = [n.op_type for n in result.graph.node]
    if clips:
        assert order.index("Clip") - order.index("QuantizeLinear") == (-1 if dialect.clip == "float" else 1)
    zero = numpy_helper.to_array(next(t for t in result.graph.initializer if t.name == "w1.input_zero_point"))
    assert (zero.dtype, int(zero)) == (np.dtype(dialect.container), dialect.zero_point(signed))


@pytest.mark.parametrize("dialect", [TRT, ORT])
def test_layers_with_one_input_and_one_quantizer_share_its_pair(dialect: Dialect) -> None:
    grid = make_grid("unsigned", (2, 4, 8))
    ones = np.ones((2, 2, 1, 1))
    layers = {"w1": layer(ones, grid.level(4)), "w2": layer(ones, grid.level(4)), "w3": layer(ones, grid.level(8))}
    weights = {name: np.zeros((2, 2, 1, 1), np.float32) for name in layers}
    result = insert(graph(SHARED, **weights), layers, dialect)
    assert count(result, "QuantizeLinear") == 2
    inputs = {node.name: node.input[0] for node in result.graph.node if node.op_type == "Conv"}
    assert inputs["w1"] == inputs["w2"] != inputs["w3"]


@pytest.mark.parametrize("dialect", [TRT, ORT])
def test_operands_of_a_residual_addition(dialect: Dialect) -> None:
    levels = [make_grid("unsigned", (8,)).levels[0], make_grid("signed", (8,)).levels[0]]
    operands = (quantizer(levels[0], 0.02), quantizer(levels[1], 0.04))
    model = graph(HEAD + ADDITION, one=np.ones((1, 1, 1, 1), np.float32))
    result = quantized_onnx(model, Codes(layers={}, adds={"s": operands}), dialect, plan_sha256="")
    x = np.random.default_rng(0).normal(0, 3, (2, 2, 4, 4)).astype(np.float32)
    lhs = np.clip(np.rint(np.maximum(x, 0) / np.float32(0.02)), 0, 127) * np.float32(0.02)
    rhs = np.clip(np.rint(np.tanh(x) / np.float32(0.04)), -127, 127) * np.float32(0.04)
    np.testing.assert_allclose(execute(result, x), lhs + rhs + 1, atol=1e-5)
    assert count(result, "QuantizeLinear") == 2, "an addition of a constant is not residual"
    with pytest.raises(SbsError, match="no addition other"):
        quantized_onnx(model, Codes(layers={}, adds={"other": operands}), dialect, plan_sha256="")


def test_linear_layer_is_fused_by_onnxruntime(tmp_path: Any) -> None:
    quantized = layer(np.full((3, 6), 7), make_grid("unsigned", (2, 4, 8)).level(8))
    step_O = np.float32(0.1) * quantized.scale_O
    result = insert(graph(LINEAR, w=np.zeros((3, 6), np.float32), b=5 * step_O), {"w": quantized}, ORT)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert count(onnx.load(tmp_path / "optimized.onnx"), "QGemm") == 1
    x = np.linspace(-1, 14, 12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_allclose(execute(result, x, optimized=True), execute(result, x), rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_dead_channel_with_a_bias_stays_within_int32(offset: float) -> None:
    """With a bias on the accumulator's grid, and with one that ONNX Runtime rounds to it when it fuses."""
    level = make_grid("unsigned", (2, 4, 8)).level(4)
    codes = np.zeros((3, 2, 3, 3))
    codes[2] = 1
    scale_O = np.array([1e-8, 1e-8, 0.05], np.float32)
    quantized = QuantizedLayer(codes=codes.astype(np.int8), scale_O=scale_O, input=quantizer(level))
    bias = np.array([100.0, -100.0, (20 + offset) * 0.1 * 0.05], np.float32)
    model = graph(FUSED, w=np.zeros((3, 2, 3, 3), np.float32), b=bias, v=np.zeros((2, 3, 1, 1), np.float32))
    next_codes = layer(np.arange(6).reshape(2, 3, 1, 1), make_grid("unsigned", (2, 4, 8)).level(8), step=1.0)
    result = insert(model, {"w": quantized, "v": next_codes}, ORT)
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_allclose(execute(result, x, optimized=True), execute(result, x), rtol=1e-5)
    np.testing.assert_allclose(execute(result, x)[0, 0, 0, 0], 2 * next_codes.scale_O[0], rtol=0.1)


def test_metadata_names_plan_and_dialect() -> None:
    result = insert(graph(LINEAR, w=np.zeros((3, 6), np.float32), b=np.zeros(3, np.float32)), {}, TRT)
    assert {p.key: p.value for p in result.metadata_props} == {"sbs.plan_sha256": "ab", "sbs.dialect": "trt"}


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        (ONE_CONV.replace("21", "20"), (3, 2, 3, 3), "opset 20"),
        (ONE_CONV.replace("Conv (input, w, b)", "Conv (input, b, b2)"), (3, 2, 3, 3), None),
        (ONE_CONV, (3, 2, 1, 1), "do not belong together"),
        (LINEAR.replace("<transB = 1>", "<transB = 0>"), (6, 3), "untransposed"),
    ],
)
def test_graphs_of_another_form_are_refused(text: str, shape: tuple[int, ...], words: str | None) -> None:
    level = make_grid("unsigned", (2, 4, 8)).level(4)
    if words is None:
        model = graph(
            ONE_CONV, v=np.zeros((3, 2, 3, 3), np.float32), w=np.zeros(shape, np.float32), b=np.zeros(3, np.float32)
        )
        model.graph.node[0].input[1] = "v"
        words = "read by nothing"
    else:
        weight = np.zeros(shape if "Gemm" in text else (3, 2, 3, 3), np.float32)
        model = graph(text, w=weight, b=np.zeros(3, np.float32))
    with pytest.raises(SbsError, match=words):
        insert(model, {"w": layer(np.zeros(shape), level)}, TRT)


def test_weights_that_are_missing_are_named() -> None:
    level = make_grid("unsigned", (2, 4, 8)).level(4)
    model = graph(LINEAR, w=np.zeros((3, 6), np.float32), b=np.zeros(3, np.float32))
    with pytest.raises(SbsError, match=r"layer other: the graph has no other\.weight"):
        insert(model, {"other": layer(np.zeros((3, 6)), level)}, ORT)


def test_codes_survive_the_disk(tmp_path: Any) -> None:
    grid = make_grid("signed", (2, 4, 8))
    layers = {"a.b": layer(np.arange(6).reshape(3, 2) - 3, grid.level(4))}
    adds = {"block+0": (quantizer(grid.level(8), 0.3), quantizer(grid.level(8)))}
    save_codes(Codes(layers=layers, adds=adds), tmp_path / "codes.npz")
    found = load_codes(tmp_path / "codes.npz")
    ((name, loaded),) = found.layers.items()
    assert name == "a.b" and loaded.input == layers["a.b"].input and found.adds == adds
    np.testing.assert_array_equal(loaded.codes, layers["a.b"].codes)
    np.testing.assert_array_equal(loaded.scale_O, layers["a.b"].scale_O)


def test_damaged_codes_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "codes.npz"
    with pytest.raises(SbsError, match="missing"):
        load_codes(path)
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(SbsError, match="sbs-deploy export"):
        load_codes(path)
    np.savez(path, **{"a/codes": np.zeros(3, np.int8)})
    with pytest.raises(SbsError, match="lacks"):
        load_codes(path)


@pytest.mark.parametrize(
    "change",
    [
        {"a/codes": np.full((3, 2), 60_000_000)},
        {"a/codes": np.zeros((3, 2), np.uint8)},
        {"a/codes": np.zeros((3, 2), np.float32)},
        {"a/codes": np.zeros(3, np.int8)},
        {"a/codes": np.zeros((), np.int8)},
        {"a/codes": np.zeros((4, 2), np.int8)},
        {"a/scale": np.ones(3)},
        {"a/scale": np.array([1, np.nan, 1], np.float32)},
        {"a/scale": np.array([1, np.inf, 1], np.float32)},
        {"a/scale": np.array([1, -1, 1], np.float32)},
        {"a/input": np.array([0.0, 0, 255, 0])},
        {"a/input": np.array([np.nan, 0, 255, 0])},
        {"a/input": np.array([1.0, 0, 1e30, 0])},
        {"a/input": np.array([1.0, 9, 0, 0])},
        {"a/input": np.array([1.0, 0, 255, 7])},
        {"a/input": np.array([1.0, 0, 255])},
        {"a/input": np.array(["1", "x", "2", "3"])},
        {"a sum/operands": np.array([[0.5, 0, 255, 0]] * 3)},
        {"a sum/operands": np.array([[0.5, 0, 255, 0]])},
        {"a sum/operands": np.ones((2, 5))},
        {"a sum/operands": np.ones(4)},
        {"a sum/operands": np.array(["ab", "cd"])},
        {"b/scale": np.ones(3, np.float32)},
        {"other": np.ones(3)},
    ],
)
def test_codes_of_another_type_or_range_are_refused(change: Any, tmp_path: Any) -> None:
    path = tmp_path / "codes.npz"
    whole = {
        "a/codes": np.zeros((3, 2), np.int8),
        "a/scale": np.ones(3, np.float32),
        "a/input": np.array([0.5, 0, 255, 0]),
        "a sum/operands": np.array([[0.5, 0, 255, 0], [1.0, -128, 127, 1]]),
    }
    np.savez(path, **whole)
    assert list(load_codes(path).layers) == ["a"]
    np.savez(path, **{**whole, **change})
    with pytest.raises(SbsError, match="make it again with `sbs-deploy export`"):
        load_codes(path)
