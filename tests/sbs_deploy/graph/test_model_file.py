"""ONNX files that ask for more than they hold: refused within 2 GiB and 20 seconds, in one line."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.lint.fix import check_same
from sbs_deploy.lint.run import load_model
from sbs_train.contract.errors import SbsError
from tests.bounded import bounded

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def text(body: str, x: str = "float[1, 8] x") -> ModelProto:
    return parser.parse_model(f"{HEAD} g ({x}) => (float[*] y) {body}".replace("float[*] y", "float[n, m] y"))


def saved(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


LARGE = {
    "ConstantOfShape": "<int64[2] s = {1000000, 1000}> { c = ConstantOfShape(s) y = Add(x, c) }",
    "a Constant of shape": "{ s = Constant<value = int64[2] {1000000, 1000}>() c = ConstantOfShape(s) y = Add(x, c) }",
    "Expand": "<float[1] v = {1}, int64[2] s = {1000000, 1000}> { c = Expand(v, s) y = Add(x, c) }",
    "Tile": "<float[1, 1] v = {1}, int64[2] s = {1000000, 1000}> { c = Tile(v, s) y = Add(x, c) }",
    "Tile of Tile": "<float[1, 1] v = {1}, int64[2] s = {1000, 1000}> { b = Tile(v, s) c = Tile(b, s) y = Add(x, c) }",
    "Range": "<float a = {0}, float b = {1000000000}, float d = {1}> { c = Range(a, b, d) y = Add(x, c) }",
    "Pad": "<float[1, 1] v = {1}, int64[4] p = {0, 0, 1000000, 1000}> { c = Pad(v, p) y = Add(x, c) }",
    "products": "<float[1] v = {1}, int64[2] s = {40000, 1}, int64[2] t = {1, 40000}> "
    "{ a = Expand(v, s) b = Expand(v, t) c = MatMul(a, b) y = Add(x, c) }",
    "sums": "<float[1] v = {1}, int64[2] s = {40000, 1}, int64[2] t = {1, 40000}> "
    "{ a = Expand(v, s) b = Expand(v, t) c = Add(a, b) y = Add(x, c) }",
    "RandomNormal": "{ c = RandomNormal<shape = [1000000, 1000]>() y = Add(x, c) }",
    "Identity before": "<int64[2] s = {1000000, 1000}> { t = Identity(s) c = ConstantOfShape(t) y = Add(x, c) }",
}


@pytest.mark.parametrize("load", [load_onnx, load_model])
@pytest.mark.parametrize("what", LARGE)
def test_a_constant_that_grows_when_it_is_computed_is_refused(what: str, load: Any, tmp_path: Path) -> None:
    path = saved(text(LARGE[what]), tmp_path / "m.onnx")
    said = bounded(load, path)
    assert said.startswith("refused: ") and "makes of constants" in said, said


@pytest.mark.parametrize("load", [load_onnx, load_model])
@pytest.mark.parametrize(("rows", "refused"), [(1_000_000, True), (100, False)])
def test_what_a_function_makes_of_constants_counts(rows: int, refused: bool, load: Any, tmp_path: Path) -> None:
    model = text(f"<int64[2] s = {{{rows}, 1000}}> {{ c = Neg(s) y = Add(x, x) }}")
    model.graph.node[0].CopyFrom(helper.make_node("grow", ["s"], ["c"], domain="mine"))
    opset = helper.make_opsetid("", model.opset_import[0].version)
    body = [helper.make_node("ConstantOfShape", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "grow", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    said = bounded(load, saved(model, tmp_path / "m.onnx"))
    assert said.startswith("refused: ") == refused and ("makes of constants" in said) == refused, said


@pytest.mark.parametrize("load", [load_onnx, load_model])
def test_a_call_that_does_not_fit_its_function_is_refused(load: Any, tmp_path: Path) -> None:
    model = text("{ y = Add(x, x) }")
    model.graph.node[0].CopyFrom(helper.make_node("one", ["x", "x"], ["y"], domain="mine"))
    opset = helper.make_opsetid("", model.opset_import[0].version)
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "one", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(SbsError, match=r"m\.onnx"):
        load(saved(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize("load", [load_onnx, load_model])
@pytest.mark.parametrize("kind", ["float", "int64"])
def test_joining_constants_again_and_again_is_refused(kind: str, load: Any, tmp_path: Path) -> None:
    """onnx follows every value on the way to a shape, a hundred bytes for each."""
    joins = " ".join(f"c{i + 1} = Concat<axis = 0>({', '.join([f'c{i}'] * 4)})" for i in range(9))
    model = text(f"{{ {joins} m = ReduceMax<keepdims = 0>(c9) f = Cast<to = 1>(m) y = Add(x, f) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.arange(4000).astype(kind.replace("float", "f4")), "c0"))
    assert bounded(load, saved(model, tmp_path / "m.onnx")).startswith("refused: ")


def test_a_constant_of_usual_size_is_loaded(tmp_path: Path) -> None:
    path = saved(text("<int64[2] s = {100, 8}> { c = ConstantOfShape(s) y = Add(x, c) }"), tmp_path / "m.onnx")
    assert load_onnx(path) == load_model(path)


def with_tensor(change: Any) -> ModelProto:
    model = text("<float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = Add(x, w) }")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.arange(8, dtype=np.float32), "w"))
    change(model.graph.initializer[0])
    return model


def external(**entries: str) -> Any:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return change


def dims(*sizes: int) -> Any:
    def change(tensor: TensorProto) -> None:
        tensor.dims[:] = sizes

    return change


def typed(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data[:] = [1.0]


@pytest.mark.parametrize("load", [load_onnx, load_model])
@pytest.mark.parametrize(
    "change",
    [
        dims(9),
        dims(7),
        dims(-8),
        dims(-2, -4),
        dims(1 << 40),
        dims(1 << 62, 1 << 62),
        dims(1 << 32, 1 << 32),
        typed,
        external(location="fifo", length="32"),
        external(location="fifo"),
        external(location="sparse"),
        external(location="sparse", length=str(1 << 36)),
        external(location="sparse", length="abc"),
        external(location="sparse", offset="-4"),
        external(location="../m.onnx", length="32"),
        external(location="/etc/passwd", length="32"),
        external(location="link", length="32"),
        external(location="nowhere"),
        external(location="small"),
        external(),
    ],
)
def test_a_tensor_gets_no_more_than_the_file_holds(change: Any, load: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/fifo")
    with (tmp_path / "in/sparse").open("wb") as file:
        file.truncate(1 << 36)
    (tmp_path / "in/small").write_bytes(bytes(31))
    (tmp_path / "in/link").symlink_to("/dev/zero")
    path = saved(with_tensor(change), tmp_path / "in/m.onnx")
    said = bounded(load, path)
    assert said.startswith("refused: ") and "export" in said and "\n" not in said, said


@pytest.mark.parametrize("load", [load_onnx, load_model])
@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/zero", "large", "empty", "text"])
def test_a_model_is_a_regular_file(kind: str, load: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind.startswith("/"):
        path.symlink_to(kind)
    else:
        with path.open("wb") as file:
            file.write(b"hello world" * (kind == "text"))
            file.truncate((1 << 40) if kind == "large" else None)
    said = bounded(load, path)
    assert said.startswith("refused: ") and "m.onnx" in said, said


@pytest.mark.parametrize("end", ["Relu", "f0"])
def test_functions_that_call_functions_are_counted(end: str, tmp_path: Path) -> None:
    model = text("{ y = Relu(x) }")
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "f0", "own"
    for level in range(40):
        last = level == 39
        name, domain = (f"f{level + 1}", "own") if not last else (end, "own" if end == "f0" else "")
        nodes = [
            helper.make_node(name, ["a"], ["b"], domain=domain),
            helper.make_node(name, ["b"], ["c"], domain=domain),
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, imports))
    for load in (load_onnx, load_model):
        said = bounded(load, saved(model, tmp_path / "m.onnx"))
        assert said.startswith("refused: ") and "\n" not in said, said


@pytest.mark.parametrize(
    ("shape", "fits"),
    [("1, 3, 20000, 20000", False), ("n, 3, 20000, h", False), ("n, 3, h, w", True), ("1, 3, 4000, 4000", False)],
)
def test_a_repair_is_checked_on_inputs_that_fit(shape: str, fits: bool, tmp_path: Path) -> None:
    model = parser.parse_model(f"{HEAD} g (float[{shape}] x) => (float[n, k, h, w] y) {{ y = Conv(x, w0) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 3, 3, 3), np.float32), "w0"))
    if fits:
        check_same(model, model)
        return
    said = bounded(check_same, model, model)
    assert said.startswith("refused: --fix") and "make the input's axes smaller" in said, said


@settings(max_examples=150, deadline=5000)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_altered_models_lead_to_one_line(changes: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    raw = bytearray(text(LARGE["Pad"].replace("1000000", "3").replace("1000", "3")).SerializeToString())
    for place, byte in changes:
        raw[place % len(raw)] = byte
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    path.write_bytes(bytes(raw))
    for load in (load_onnx, load_model):
        try:
            assert isinstance(load(path), onnx.ModelProto)
        except SbsError as error:
            assert "\n" not in str(error)
