"""A Clip in front of quantizers, as ReLU6 exports: it goes into theirs, exactly, wherever nothing else reads it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from sbs_deploy.export.dialects import ORT, TRT, Dialect
from sbs_train.contract.grid import Quantizer, activation_role, make_grid
from tests.sbs_deploy.export.text_graphs import HEAD, count, execute, graph, insert, layer

DIALECTS = st.sampled_from([TRT, ORT])
RELU6 = (
    HEAD
    + """
g (float[N,2,4,4] input) => (float[N,2,4,4] logits) <float zero = {0}, float six = {6}> {
    y = Conv (input, w)
    x = Clip (y, zero, six)
    logits = Conv (x, v)
}"""
)


@settings(max_examples=60)
@given(
    dialect=DIALECTS,
    signed=st.booleans(),
    bits=st.sampled_from([2, 4, 8]),
    clip_a=st.floats(0.5, 12),
    low=st.sampled_from([-1.0, 0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_a_clip_becomes_part_of_the_quantizer_behind_it(
    dialect: Dialect, signed: bool, bits: int, clip_a: float, low: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    level = make_grid(activation_role(signed), (2, 4, 8)).level(bits)
    step = float(np.float32(clip_a / level.steps))
    ones = np.eye(2).reshape(2, 2, 1, 1)
    quantized = layer(ones, level, step=step)
    text = RELU6.replace("zero = {0}", f"zero = {{{low}}}")
    model = graph(text, w=ones.astype(np.float32), v=np.zeros((2, 2, 1, 1), np.float32))
    result = insert(model, {"v": quantized}, dialect)
    x = rng.normal(2, 4, (3, 2, 4, 4)).astype(np.float32)
    codes = np.clip(np.rint(np.clip(x, np.float32(low), 6) / np.float32(step)), level.code_min, level.code_max)
    expected = codes * step * quantized.scale_O[:, None, None]
    np.testing.assert_allclose(execute(result, x), expected, atol=1e-4)
    # ONNX Runtime fuses no float Clip of another range than the quantizer's.
    before, after = [n.op_type for n in result.graph.node], count(result, "Clip")
    assert after <= 1 and (dialect is TRT or "QuantizeLinear" not in before[before.index("Clip") :])


@pytest.mark.parametrize("dialect", [TRT, ORT])
def test_relu6_is_fused_by_onnxruntime(tmp_path: Path, dialect: Dialect) -> None:
    grid = make_grid("unsigned", (2, 4, 8))
    ones = np.ones((2, 2, 1, 1))
    layers = {"w": layer(ones, grid.level(8), step=0.1), "v": layer(ones, grid.level(8), step=0.06)}
    weights = {name: np.zeros((2, 2, 1, 1), np.float32) for name in layers}
    result = insert(graph(RELU6, **weights), layers, dialect)
    *_, relu6 = [n for n in result.graph.node if n.op_type == "Clip"]
    bounds = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert [float(bounds[name]) for name in relu6.input[1:]] == ([0, 6] if dialect is TRT else [0, 100])
    if dialect is ORT:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert count(onnx.load(tmp_path / "optimized.onnx"), "QLinearConv") == 1


@settings(max_examples=40)
@given(
    activation=st.sampled_from(["Relu (y)", "Clip (y, zero, six)", "Identity (y)"]),
    clip_a=st.floats(0.5, 12),
    read=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_all_codes_of_a_container_need_no_clip_and_no_relu(
    activation: str, clip_a: float, read: bool, seed: int
) -> None:
    quantizer = Quantizer(step=float(np.float32(clip_a / 255)), code_min=0, code_max=255)
    ones = np.eye(2).reshape(2, 2, 1, 1)
    quantized = replace(layer(ones, make_grid("unsigned", (8,)).level(8)), input=quantizer)
    text = RELU6.replace("Clip (y, zero, six)", activation)
    text = text.replace("logits = Conv (x, v)", "z = Conv (x, v)\n logits = Sub (z, x)") if read else text
    weights = {"w": ones.astype(np.float32), "v": np.zeros((2, 2, 1, 1), np.float32)}
    result = insert(graph(text, **weights), {"v": quantized}, ORT)
    y = np.random.default_rng(seed).normal(2, 4, (3, 2, 4, 4)).astype(np.float32)
    x = y if "Identity" in activation else np.clip(y, 0, 6 if "Clip" in activation else None)
    expected = np.clip(np.rint(x / np.float32(quantizer.step)), 0, 255) * quantizer.step
    expected = expected * quantized.scale_O[:, None, None] - (x if read else 0)
    np.testing.assert_allclose(execute(result, y), expected, atol=1e-4)
    covered = "Clip" in activation and np.rint(6 / np.float32(quantizer.step)) < 255
    assert count(result, "Relu") + count(result, "Clip") == int(covered or (read and "Identity" not in activation))


@pytest.mark.parametrize("dialect", [TRT, ORT])
def test_a_clip_that_others_read_stays(dialect: Dialect) -> None:
    level = make_grid("unsigned", (2, 4, 8)).level(4)
    text = RELU6.replace("logits = Conv (x, v)", "z = Conv (x, v)\n logits = Add (z, x)")
    weights = {name: np.zeros((2, 2, 1, 1), np.float32) for name in ("w", "v")}
    result = insert(graph(text, **weights), {"v": layer(np.ones((2, 2, 1, 1)), level)}, dialect)
    assert [n.op_type for n in result.graph.node][:2] == ["Conv", "Clip"]
    assert count(result, "Clip") == 2, "its own and the grid's"
    assert result.graph.node[-1].input[1] == "x"


def test_a_clip_with_two_quantizers_goes_into_both() -> None:
    grid = make_grid("unsigned", (2, 4, 8))
    text = RELU6.replace("logits = Conv (x, v)", "z = Conv (x, v)\n u = Conv (x, w2)\n logits = Add (z, u)")
    ones = np.ones((2, 2, 1, 1))
    layers = {"v": layer(ones, grid.level(4), step=0.3), "w2": layer(ones, grid.level(2), step=2.5)}
    weights = {name: np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1) for name in ("w", "v", "w2")}
    result = insert(graph(text, **weights), layers, ORT)
    x = np.linspace(-4, 9, 64, dtype=np.float32).reshape(2, 2, 4, 4)
    relu6 = np.clip(x, 0, 6)
    sums = [
        (np.minimum(np.rint(relu6 / np.float32(step)), top) * step).sum(1, keepdims=True)
        * layers[name].scale_O[:, None, None]
        for name, step, top in (("v", 0.3, 15), ("w2", 2.5, 3))
    ]
    np.testing.assert_allclose(execute(result, x), sums[0] + sums[1], rtol=1e-5)
    names = {t.name for t in result.graph.initializer}
    assert count(result, "Clip") == 2 and not names & {"zero", "six"}
