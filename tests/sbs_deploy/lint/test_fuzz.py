"""Whatever graph: findings or one line, no traceback, and a repair that computes the same or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.cli import main
from sbs_deploy.lint.fix import repair
from sbs_deploy.lint.run import RULE_SETS, lint_model

TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
)
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (4,),
    (0,),
    (4, 4),
    (1, 4),
    (4, 4, 1),
    (4, 4, 1, 1),
    (4, 1, 2, 2),
    (2, 4, 4, 1, 1),
)
UNARY = (
    "Relu",
    "Identity",
    "Sigmoid",
    "Transpose",
    "Flatten",
    "Neg",
    "GlobalAveragePool",
    "Shape",
    "Dropout",
    "Squeeze",
)
BINARY = (
    "Add",
    "Mul",
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "QuantizeLinear",
    "DequantizeLinear",
    "Reshape",
    "Concat",
)
TERNARY = ("QuantizeLinear", "DequantizeLinear", "Clip", "Conv", "Gemm", "ConvTranspose", "Where", "Sum", "Max")
FOREIGN = ("QLinearConv", "QuantizeLinear", "DequantizeLinear", "Gelu", "FusedConv", "NoSuchOperator", "QGemm")
ATTRIBUTES: tuple[dict[str, Any], ...] = (
    *({}, {}, {"axis": 0}, {"axis": 1}, {"axis": -1}, {"axis": 7}, {"perm": [1, 0]}, {"perm": [1, 0, 2, 3]}),
    *({"transB": 1}, {"group": 4}, {"group": 0}, {"block_size": 2, "axis": 0}, {"to": 1}, {"output_dtype": 2}),
)


OPTIONAL = ("Clip", "Conv", "Gemm", "ConvTranspose", "QuantizeLinear", "DequantizeLinear")
"""Operators whose third input may be left out."""


def known(op: str, name: str, opset: int) -> bool:
    """Whether an operator has an attribute."""
    try:
        return name in onnx.defs.get_schema(op, opset, "").attributes
    except onnx.defs.SchemaError:
        return False


def attribute_constants(draw: Any, name: str) -> onnx.NodeProto:
    """A Constant in one of its forms."""
    values = {
        "value_float": draw(st.sampled_from([0.0, 0.1, -1.0, float("nan")])),
        "value_floats": draw(st.lists(st.sampled_from([0.0, 0.1, -1.0]), min_size=1, max_size=4)),
        "value_int": draw(st.integers(-5, 5)),
        "value_ints": draw(st.lists(st.integers(-5, 5), min_size=1, max_size=4)),
        "value_string": "text",
        "value_strings": ["text", "more"],
        "value": numpy_helper.from_array(np.array(["a", "b"], object) if draw(st.booleans()) else np.float32(0.1)),
    }
    form = draw(st.sampled_from([*values, "sparse_value"]))
    if form == "sparse_value":
        sparse = helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "values"),
            numpy_helper.from_array(np.zeros(1, np.int64), "indices"),
            draw(st.sampled_from([[4], [2**40], [2**20, 2**20]])),
        )
        return helper.make_node("Constant", [], [name], sparse_value=sparse)
    given: dict[str, Any] = {form: values[form]}
    return helper.make_node("Constant", [], [name], **given)


@st.composite
def models(draw: Any) -> onnx.ModelProto:
    """A few nodes that read anything that stands before them."""
    opset = draw(st.integers(11, 24))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    initializers, nodes, tensors = [], [], ["x"]
    for index in range(draw(st.integers(0, 6))):
        kind, shape = draw(st.sampled_from(TYPES)), draw(st.sampled_from(SHAPES))
        values = np.asarray(rng.uniform(-3, 3, shape), helper.tensor_dtype_to_np_dtype(kind))
        initializers.append(
            numpy_helper.from_array(
                np.asarray(values * draw(st.sampled_from([0, 1]))).astype(values.dtype), f"c{index}"
            )
        )
        tensors.append(f"c{index}")
    for index in range(draw(st.integers(0, 8))):
        out, named = f"t{index}", draw(st.sampled_from(["", "n", f"n{index}"]))
        kinds = draw(st.sampled_from(["constant", "unary", "binary", "ternary", "foreign", "if", "own"]))
        read = [draw(st.sampled_from(tensors)) for _ in range(3)]
        attributes = draw(st.sampled_from(ATTRIBUTES))
        if kinds == "constant":
            nodes.append(attribute_constants(draw, out))
        elif kinds == "if":
            nodes.append(
                helper.make_node(
                    "If",
                    read[:1],
                    [out],
                    named,
                    then_branch=body(read[1], f"{out}_then"),
                    else_branch=body(read[2], f"{out}_else"),
                )
            )
        elif kinds == "own":
            nodes.append(helper.make_node("Own", read[:1], [out], named, domain="own"))
        else:
            choice = {"unary": UNARY, "binary": BINARY, "ternary": TERNARY, "foreign": FOREIGN}[kinds]
            count = {"unary": 1, "binary": 2, "ternary": 3, "foreign": 3}[kinds]
            op, domain = draw(st.sampled_from(choice)), "com.microsoft" if kinds == "foreign" else ""
            if op in OPTIONAL and draw(st.booleans()):
                read[2] = ""
            given = (
                attributes if domain else {name: value for name, value in attributes.items() if known(op, name, opset)}
            )
            nodes.append(helper.make_node(op, read[:count], [out], named, domain=domain, **given))
        tensors.append(out)
    shape = draw(st.sampled_from([["N", 4, 4, 4], ["N", 4], [1, 4, 4, 4], [], [None, 4, None, 2], [0, 4]]))
    x = helper.make_tensor_value_info("x", draw(st.sampled_from(TYPES)), shape)
    last = draw(st.sampled_from(tensors))
    nodes.append(helper.make_node("Shape", [last], ["y"]))  # of one type, whatever it is the shape of
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["a"])
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    opsets = [helper.make_opsetid(*pair) for pair in (("", opset), ("com.microsoft", 1), ("own", 1))]
    own = helper.make_function("own", "Own", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets[:1])
    return helper.make_model(graph, opset_imports=opsets, ir_version=draw(st.integers(7, 11)), functions=[own])


def body(name: str, place: str) -> onnx.GraphProto:
    """A branch that takes a tensor from outside."""
    inner = f"{name}_inner_{place}"
    return helper.make_graph(
        [helper.make_node("Identity", [name], [inner])],
        "b",
        [],
        [helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["a"])],
    )


def check(model: onnx.ModelProto, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    code = main(["lint", str(path), "--json", "--fix", str(folder / "fixed.onnx")])
    captured = capsys.readouterr()
    assert code in (0, 1, 2)
    if code == 2:
        assert len([line for line in captured.err.splitlines() if "error: " in line]) == 1, captured.err
    plain = main(["lint", str(path)])
    assert plain in (0, 1, 2) and (plain != 2 or code == 2)
    capsys.readouterr()
    return plain


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_any_graph(model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(model, tmp_path, capsys)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_many_graphs(model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(model, tmp_path, capsys)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models(), rules=st.sampled_from([("trt",), ("ort",), RULE_SETS]))
def test_the_rules_alone(model: onnx.ModelProto, rules: Any) -> None:
    """Without the checker in front, which refuses most of these."""
    if not model.graph.node:
        return
    try:
        onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return
    lint_model(model, rules)
    repair(model, rules)


def test_loops_and_bodies_in_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x, bool c, int64 n) => (float[N,4] y) <float s = {0.1}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        y = Loop(n, c, d) <body = b (int64 i, bool k, float[N,4] a) => (bool k2, float[N,4] r) {
            k2 = Identity(k)
            r = If(k) <then_branch = t () => (float[N,4] u) { u = Add(a, d) },
                       else_branch = e () => (float[N,4] v) { v = Relu(d) }>
        }>
    }"""
    assert check(onnx.parser.parse_model(text), tmp_path, capsys) == 0
