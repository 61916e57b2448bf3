"""What float16 cannot hold is found on real images, and stays in float32; the rest answers as float32 does."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.backends.request import Request
from sbs_deploy.backends.spec import TENSORRT_RTX, import_problem, require_module
from sbs_deploy.backends.tensorrt.build import engine_from_onnx
from sbs_deploy.graph.run import relative_error, run_graph
from sbs_deploy.legalise.half import float32_layers, half_precision
from sbs_deploy.legalise.ranges import beyond_float16
from sbs_deploy.legalise.single import with_float16_range
from tests.sbs_deploy.graphs import CONVOLUTIONS, IMAGE, float_model, qdq_model

IMAGES = np.random.default_rng(0).standard_normal((8, *IMAGE)).astype(np.float32)
TOLERANCE = 2e-2


def logits(model: onnx.ModelProto) -> np.ndarray:
    return run_graph(model, ["logits"], {"input": IMAGES}, "none")["logits"]


def scaled(model: onnx.ModelProto, name: str, factor: float) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], size: int = 8) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], f"n_{output}", **attributes)


MEAN = node("GlobalAveragePool", "y", "pool"), node("Flatten", "pool", "logits")
CASES = {
    "gamma of 4e4 before SiLU": (
        [
            node("Mul", "input gamma", "x"),
            node("Sigmoid", "x", "s"),
            node("Mul", "x s", "z"),
            node("Mul", "z small", "y"),
        ],
        {"gamma": np.float32(4e4), "small": np.float32(1e-5)},
        {"x", "z"},
    ),
    "exponentials": (
        [node("Mul", "input ten", "x"), node("Exp", "x", "e"), node("Log", "e", "y")],
        {"ten": np.float32(6)},
        {"e"},
    ),
    "squares": (
        [
            node("Mul", "input large", "x"),
            node("Pow", "x two", "p"),
            node("ReduceMean", "p axes", "v"),
            node("Sqrt", "v", "d"),
            node("Div", "x d", "y"),
        ],
        {"large": np.float32(300), "two": np.float32(2), "axes": np.int64([1])},
        {"p"},
    ),
    "small squares and an epsilon": (
        [
            node("Mul", "input small", "x"),
            node("Mul", "x x", "p"),
            node("ReduceMean", "p axes", "v"),
            node("Add", "v epsilon", "a"),
            node("Sqrt", "a", "d"),
            node("Div", "x d", "y"),
        ],
        {"small": np.float32(2e-4), "epsilon": np.float32(1e-12), "axes": np.int64([1])},
        {"p", "v"},
    ),
    "a sum over a map": (
        [node("Mul", "input large", "x"), node("ReduceSum", "x axes", "sum"), node("Mul", "sum small", "y")],
        {"large": np.float32(4e3), "small": np.float32(1e-3), "axes": np.int64([1])},
        {"x"},
    ),
    "an average whose sum is large": (
        [node("Mul", "input large", "y")],
        {"large": np.float32(2e3)},
        {"pool"},
    ),
}


def case(name: str) -> tuple[onnx.ModelProto, set[str]]:
    nodes, constants, beyond = CASES[name]
    return graph_of([*nodes, *MEAN], constants), beyond


@pytest.mark.parametrize("name", CASES)
def test_tensors_at_the_ends_of_float16_stay_in_float32(name: str) -> None:
    model, beyond = case(name)
    keep = beyond_float16(model, {"input": IMAGES})
    assert beyond <= keep
    half = half_precision(model, keep)
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
    assert all(kinds[tensor] == TensorProto.FLOAT for tensor in beyond)
    assert set(float32_layers(model, keep)) >= {f"n_{tensor}" for tensor in beyond}
    assert relative_error(logits(with_float16_range(half)), logits(model)) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_without_a_run_float16_answers_otherwise(name: str) -> None:
    """The emulation shows what is prevented; a sum inside an operator is the engine's own."""
    if "sum" in name:
        pytest.skip("inside an operator")
    model, _ = case(name)
    with np.errstate(all="ignore"):
        assert not relative_error(logits(with_float16_range(half_precision(model))), logits(model)) < TOLERANCE


def test_a_factor_without_digits_in_float16_stays_in_float32() -> None:
    nodes = [node("Mul", "input large", "x"), node("Mul", "x tiny", "z"), node("Mul", "z back", "y")]
    constants = {"large": np.float32(500), "tiny": np.float32(8e-8), "back": np.float32(2e4)}
    model = graph_of([*nodes, *MEAN], constants)
    assert relative_error(logits(with_float16_range(half_precision(model))), logits(model)) < TOLERANCE


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("name", CASES)
def test_tensorrt_rtx_takes_what_is_kept(name: str) -> None:
    model, _ = case(name)
    half = half_precision(model, beyond_float16(model, {"input": IMAGES}))
    trt = require_module(TENSORRT_RTX)
    assert engine_from_onnx(trt, half, name, Request(backend=TENSORRT_RTX, precision="fp16")).plan


@pytest.mark.parametrize("model", [float_model(), qdq_model("trt")], ids=["float", "quantized"])
def test_usual_networks_stay_in_float16(model: onnx.ModelProto) -> None:
    assert not beyond_float16(model, {"input": IMAGES})


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=3))
@example([0.0, 2.0, -6.0])
def test_layers_of_any_scale(exponents: list[float]) -> None:
    """Float16 within tolerance of float32, whatever the scales; what it cannot hold was kept in float32."""
    model = float_model()
    for name, exponent in zip(CONVOLUTIONS, exponents, strict=True):
        scaled(model, f"{name}.weight", 10**exponent)
    total = float(np.abs(logits(model)).max())
    if not 1e-30 < total < 1e30:
        return
    scaled(model, "fc.weight", 1 / total)
    half = half_precision(model, beyond_float16(model, {"input": IMAGES}))
    assert relative_error(logits(with_float16_range(half)), logits(model)) < TOLERANCE


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_emulation_writes_what_numpy_writes(values: list[float]) -> None:
    array = np.zeros((1, 3, 8, 8), np.float32)
    array.flat[: len(values)] = values
    model = graph_of([node("Identity", "input", "y"), node("Relu", "y", "logits")], {})
    found = run_graph(with_float16_range(half_precision(model)), ["logits"], {"input": array}, "none")["logits"]
    with np.errstate(over="ignore"):
        expected = np.maximum(array, 0).astype(np.float16).astype(np.float32)
    # Ties fall to the even digit in NumPy, and here too; a subnormal may differ by its last bit.
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-24)
