"""The command on real files: ours, quantize_static's, and damaged ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.cli import main
from sbs_deploy.lint.rules import RULES
from sbs_deploy.lint.run import RULE_SETS, lint_model, load_model
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import IMAGE, float_model, make_run, qdq_model
from tests.sbs_deploy.lint.nets import net
from tests.sbs_deploy.lint.runtimes import rtx, run

DOCUMENT = Path(__file__).parents[3] / "docs" / "lint.md"


@pytest.fixture
def lint(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with --json: (exit code, document)."""

    def call(path: Path, *arguments: str) -> tuple[int, Any]:
        code = main(["lint", str(path), "--json", *arguments])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def of_rule(document: Any, severity: str = "") -> set[str]:
    return {finding["rule"] for finding in document["findings"] if severity in ("", finding["severity"])}


def quantize_static(path: Path, **options: Any) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    images = [{"input": np.random.default_rng(i).standard_normal((2, *IMAGE)).astype(np.float32)} for i in range(3)]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return images.pop() if images else None

    source = save(float_model(), path.with_suffix(".float.onnx"))
    quantization.quantize_static(source, path, Reader(), **options)
    return path


def test_an_exported_run_has_no_errors(exported: RunDir, lint: Any) -> None:
    for path, rules in ((exported.model_trt, ["trt"]), (exported.model_ort, ["ort"])):
        code, document = lint(path)
        assert (code, document["rules"], of_rule(document, "error")) == (0, rules, set())
        assert not of_rule(document) & {"int8-activation", "half-quantized", "weight-axis"}


def test_the_rules_of_a_file(tmp_path: Path, lint: Any) -> None:
    found = make_run(tmp_path / "run")
    assert lint(found.model_trt)[1]["rules"] == ["trt"]
    assert lint(found.model_ort)[1]["rules"] == ["ort"]
    assert lint(found.model_ort, "--rules", "trt")[1]["rules"] == ["trt"]
    elsewhere = save(qdq_model("ort"), tmp_path / "model.ort.onnx")
    assert lint(elsewhere)[1]["rules"] == ["trt", "ort"]
    marked = qdq_model("ort")
    helper.set_model_props(marked, {"sbs.dialect": "ort"})
    assert lint(save(marked, elsewhere))[1]["rules"] == ["ort"]


def test_a_model_of_quantize_static(tmp_path: Path, lint: Any) -> None:
    path = quantize_static(tmp_path / "static.onnx", per_channel=True)
    code, document = lint(path)
    assert code == 1
    assert {"zero-point", "quantized-bias"} == of_rule(document, "error")
    assert lint(path, "--rules", "ort")[0] == 0


def test_a_symmetric_one_is_repaired_for_tensorrt(tmp_path: Path, lint: Any) -> None:
    options = {"ActivationSymmetric": True, "WeightSymmetric": True}
    path = quantize_static(tmp_path / "static.onnx", per_channel=True, extra_options=options)
    assert rtx(onnx.load(path))[0] is None
    code, document = lint(path, "--rules", "trt")
    assert (code, of_rule(document, "error")) == (1, {"quantized-bias"})
    assert all(f["fixable"] for f in document["findings"] if f["severity"] == "error")
    code, document = lint(path, "--rules", "trt", "--fix", str(tmp_path / "fixed.onnx"))
    assert (code, of_rule(document, "error")) == (0, set())
    assert {finding["rule"] for finding in document["fixed"]} == {"quantized-bias"}
    fixed = onnx.load(tmp_path / "fixed.onnx")
    assert rtx(fixed)[0] is not None
    np.testing.assert_array_equal(run(fixed), run(onnx.load(path)))


def test_the_operator_format(tmp_path: Path, lint: Any) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = quantize_static(tmp_path / "static.onnx", quant_format=quantization.QuantFormat.QOperator)
    code, document = lint(path)
    operators = [f for f in document["findings"] if f["rule"] == "qoperator"]
    assert code == 1
    assert len(operators) == sum(n.op_type.startswith("QLinear") for n in onnx.load(path).graph.node)


def test_external_data_and_local_functions(tmp_path: Path, lint: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = net(x={"dtype": np.uint8, "zero": 128}), tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    code, document = lint(path, "--rules", "trt", "--fix", str(tmp_path / "out.onnx"))
    assert (code, len(document["fixed"])) == (0, 1)
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "out.onnx")), run(net(x={"dtype": np.uint8, "zero": 128})))
    (tmp_path / "m.data").unlink()
    assert main(["lint", str(path)]) == 2
    assert_one_line(capsys)
    inner = helper.make_function(
        "own", "Half", ["a"], ["b"], [helper.make_node("HardSwish", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    model = net(between=lambda made, out: made.node("Half", [out], "half", domain="own"))
    model.functions.append(inner)
    assert "float-island" in of_rule(lint(save(model, path), "--rules", "ort")[1])


def assert_one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sbs-deploy: error: ")
    return line


@pytest.mark.parametrize("content", [None, b"", b"not ONNX at all", b"\x08\x0a", "half", "graphless", "opsetless"])
def test_bad_input(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = net()
    if content == "half":
        content = whole.SerializeToString()[: whole.ByteSize() // 2]
    if content == "graphless":
        content = helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
    if content == "opsetless":
        del whole.opset_import[:]
        content = whole.SerializeToString()
    path, out = tmp_path / "bad.onnx", tmp_path / "out.onnx"
    if content is not None:
        path.write_bytes(content)
    assert main(["lint", str(path), "--fix", str(out)]) == 2
    assert str(path) in assert_one_line(capsys)
    assert not out.exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits(flips: Any, tmp_path: Path) -> None:
    content = bytearray(SMALL)
    for place, bit in flips:
        content[int(place * len(content))] ^= 1 << bit
    path = tmp_path / "flipped.onnx"
    path.write_bytes(bytes(content))
    try:
        found = lint_model(load_model(path), RULE_SETS).findings
    except SbsError as error:
        assert "\n" not in str(error)
    else:
        json.dumps([finding.as_json() for finding in found], allow_nan=False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def small_model() -> onnx.ModelProto:
    """Mostly structure, few weights."""
    parts = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w": np.ones((1, 1, 1, 1), np.int8),
        "ws": np.ones(1, np.float32),
        "b": np.zeros(1, np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "z", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "ws"], ["bd"], axis=0),
        helper.make_node("Conv", ["d", "wd", "bd"], ["y"], group=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, 2, 2]) for name in "xy"]
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in parts.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SMALL = small_model().SerializeToString()


def test_people_read_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(net(x={"dtype": np.uint8, "zero": 128}), tmp_path / "m.onnx")
    assert main(["lint", str(path), "--rules", "trt"]) == 1
    out = capsys.readouterr().out
    for words in (
        "zero-point",
        "in.q_QuantizeLinear",
        "uint8, zero-point 128",
        "--fix can do it",
        "1 errors, 1 warnings",
    ):
        assert words in out


def test_the_page_lists_every_rule() -> None:
    section = DOCUMENT.read_text().partition("## Rules")[2].partition("##")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert [(row[0].strip("| `"), row[1], row[2]) for row in rows] == [
        (rule.id, ", ".join(rule.dialects), rule.severity) for rule in RULES
    ]
    for row, rule in zip(rows, RULES, strict=True):
        assert (row[3], row[4].removesuffix(" |")) == (rule.effect, rule.remedy)
