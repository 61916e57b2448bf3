"""Repairs: exact, accepted by the target that refused, and never written where they are not shown to be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from sbs_deploy.lint import fix
from sbs_deploy.lint.finding import Hit
from sbs_deploy.lint.fix import check_same, fix_model, repair
from sbs_deploy.lint.rules import RULES
from sbs_deploy.lint.run import lint_model
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import qdq_model
from tests.sbs_deploy.lint.cases import cases
from tests.sbs_deploy.lint.nets import CHANNELS, clip, codes, float_bias, int32_bias, net, op
from tests.sbs_deploy.lint.runtimes import operators, rtx, run

TARGETS: dict[str, Any] = {"trt": ("trt",), "ort": ("ort",), "both": ("trt", "ort")}
CASES = [
    pytest.param(rule, TARGETS[target], bad, id=f"{target}-{rule}-{i}")
    for i, (rule, target, bad, _) in enumerate(cases())
    if any(f.rule.id == rule and f.hit.fix is not None for f in lint_model(bad, TARGETS[target]).findings)
]
FIXABLE = {
    *("zero-point", "uint8", "scale", "quantized-bias", "bias-overflow"),
    *("blocked-fusion", "int8-activation", "repeated-pair", "moved-codes", "single-scale", "bias-scale"),
}


def equal(one: onnx.ModelProto, two: onnx.ModelProto) -> None:
    for seed, reach in enumerate((1.0, 0.05, 20.0)):
        np.testing.assert_array_equal(run(one, reach=reach, seed=seed), run(two, reach=reach, seed=seed))


def left(model: onnx.ModelProto, rules: Any) -> set[str]:
    return {finding.rule.id for finding in lint_model(model, rules).findings}


def test_these_rules_can_be_repaired() -> None:
    assert {case.values[0] for case in CASES} == FIXABLE


@pytest.mark.parametrize(("rule", "rules", "bad"), CASES)
def test_a_repair_is_exact_and_final(rule: str, rules: Any, bad: onnx.ModelProto) -> None:
    before = bad.SerializeToString()
    repaired, model = repair(bad, rules)
    assert bad.SerializeToString() == before
    assert rule in {finding.rule.id for finding in repaired}
    assert rule not in left(model, rules)
    onnx.checker.check_model(model, full_check=True)
    equal(bad, model)
    assert repair(model, rules)[0] == []
    if "trt" in rules:
        plan, words = rtx(model)
        assert plan is not None, words


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    rules=st.sampled_from([("trt",), ("ort",), ("trt", "ort")]),
    seed=st.integers(0, 1000),
)
def test_any_mixture_keeps_what_it_computes(data: st.DataObject, rules: Any, seed: int) -> None:
    def quantizer() -> dict[str, Any]:
        dtype = data.draw(st.sampled_from([np.int8, np.uint8]))
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        drawn = {
            "dtype": dtype,
            "zero": data.draw(st.sampled_from([low, 0, high - 127, high]) | st.integers(low, high)),
            "scale": data.draw(st.sampled_from([0.04, 0.04, 0.003, 1.0])),
        }
        if data.draw(st.booleans()):
            drawn["clip"] = tuple(sorted(data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))))
        return drawn

    unsigned = data.draw(st.booleans())
    sign = data.draw(st.sampled_from([1.0, 0.0, -1.0]))
    model = net(
        x=quantizer(),
        middle=quantizer(),
        w={"dtype": np.uint8, "zero": 128} if unsigned else {"scale": [0.01 * sign, *[0.02] * (CHANNELS - 1)]},
        bias=data.draw(st.sampled_from([None, int32_bias, float_bias(1.5)])),
        between=data.draw(st.sampled_from([None, op("Relu"), clip(0, 1.1), clip(-0.7, 0.33), op("HardSwish")])),
    )
    repaired, model_fixed = repair(model, rules)
    onnx.checker.check_model(model_fixed, full_check=True)
    np.testing.assert_array_equal(run(model, reach=2.0, seed=seed), run(model_fixed, reach=2.0, seed=seed))
    if repaired:
        check_same(model, model_fixed)


def test_codes_stay_what_they_were() -> None:
    model = repair(net(w={"dtype": np.uint8, "zero": 128}), ("trt",))[1]
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer if t.dims == [CHANNELS, CHANNELS, 1, 1]]
    assert all(array.dtype == np.int8 for array in stored)
    assert any(np.array_equal(array, codes()) for array in stored)
    assert not any(t.data_type == onnx.TensorProto.UINT8 for t in model.graph.initializer)


def test_symmetric_int8_becomes_what_onnxruntime_fuses(tmp_path: Path) -> None:
    model = qdq_model("trt")
    repaired, fused = repair(model, ("ort",))
    assert {finding.rule.id for finding in repaired} >= {"blocked-fusion", "int8-activation"}
    assert operators(model, tmp_path).count("QLinearConv") < operators(fused, tmp_path).count("QLinearConv") == 2


def test_no_repair_for_one_target_against_the_other() -> None:
    model = net(between=op("Relu"), middle={"clip": (-7, 7)})
    found = lint_model(model, ("trt", "ort")).findings
    assert {"blocked-fusion", "int8-activation"} <= {finding.rule.id for finding in found}
    assert not any(finding.as_json()["fixable"] for finding in found)
    assert repair(model, ("trt", "ort"))[0] == []


def test_the_model_itself_is_never_overwritten(tmp_path: Path) -> None:
    path, link = tmp_path / "m.onnx", tmp_path / "link.onnx"
    onnx.save(net(x={"dtype": np.uint8, "zero": 128}), path)
    link.symlink_to(path)
    before = path.read_bytes()
    for destination in (path, link, tmp_path / "." / "m.onnx"):
        with pytest.raises(SbsError, match="give another path"):
            fix_model(onnx.load(path), ("trt",), destination, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["value", "graph"])
def test_a_wrong_repair_is_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    onnx.save(model, tmp_path / "m.onnx")
    done: list[None] = []

    def find(graph: Any) -> Any:
        def wrong() -> None:
            done.append(None)
            if damage == "graph":
                graph.nodes[1].input[0] = "nowhere"
            else:
                (scale,) = (t for t in graph.model.graph.initializer if t.name == "mid.scale")
                scale.CopyFrom(numpy_helper.from_array(np.float32(0.041), "mid.scale"))

        if not done:
            yield Hit(node="x", fix=wrong)

    monkeypatch.setattr(fix, "RULES", (replace(RULES[0], find=find),))
    with pytest.raises(SbsError, match="something else" if damage == "value" else "invalid model"):
        fix_model(model, ("trt",), tmp_path / "out.onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_cannot_be_checked_is_not_written(tmp_path: Path) -> None:
    model = net(x={"dtype": np.uint8, "zero": 128}, real=np.float16, opset=18)  # ONNX Runtime does not load it
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SbsError, match="ONNX Runtime cannot load the model"):
        fix_model(model, ("trt",), tmp_path / "out.onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "out.onnx").exists()
