"""A graph in float32 answers as it does in float16, and rounding on purpose is what float16 does."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from sbs_deploy.graph.run import relative_error, run_graph
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.legalise.single import has_half, precisions, single_precision, with_rounding
from tests.sbs_deploy.graphs import IMAGE, float_model, qdq_model

INPUT, OUTPUT = "input", "logits"

IMAGES = np.random.default_rng(0).standard_normal((8, *IMAGE)).astype(np.float32)
GRAPHS = {"float": float_model(), "int8": qdq_model("trt")}


def logits(model: onnx.ModelProto) -> np.ndarray:
    return run_graph(model, [OUTPUT], {"input": IMAGES}, "none")[OUTPUT]


@pytest.mark.parametrize("name", GRAPHS)
def test_float16_and_back(name: str) -> None:
    model = GRAPHS[name]
    half = half_precision(model)
    back = single_precision(half)
    onnx.checker.check_model(back, full_check=True)
    assert has_half(half) and not has_half(back) and not has_half(model)
    inferred = onnx.shape_inference.infer_shapes(back)
    assert TensorProto.FLOAT16 not in {value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    # Its constants keep float16's rounding, which is all that it lost.
    assert 1e-6 < relative_error(logits(back), logits(model)) < 0.02
    assert has_half(half), "the graph itself is left alone"


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("half", [False, True])
def test_rounding_moves_the_answers_as_float16_does(name: str, half: bool) -> None:
    model = half_precision(GRAPHS[name]) if half else GRAPHS[name]
    exact, rounded = precisions(model)
    assert not has_half(exact) and not has_half(rounded)
    assert relative_error(logits(exact), logits(model)) < 1e-3
    assert 1e-5 < relative_error(logits(rounded), logits(exact)) < 0.02


@given(arrays(np.float32, (4, 3), elements=st.floats(-60000, 60000, width=32)))
def test_a_node_writes_what_numpy_rounds_to(values: np.ndarray) -> None:
    x = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [4, 3])
    y = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [4, 3])
    graph = helper.make_graph([helper.make_node("Identity", [INPUT], [OUTPUT])], "identity", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = run_graph(with_rounding(model), [OUTPUT], {"input": values}, "none")[OUTPUT]
    # Where float16 has all its digits it is the reference; numbers half-way may go to either neighbour.
    normal = np.abs(values) >= np.finfo(np.float16).tiny
    assert np.array_equal(found[normal], found[normal].astype(np.float16).astype(np.float32)), "eleven bits"
    nearest = np.abs(values.astype(np.float16).astype(np.float32) - values)
    np.testing.assert_array_equal(np.abs(found - values)[normal], nearest[normal])
