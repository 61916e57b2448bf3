"""The graph a backend gets: types, layers and grids as asked for, made anew only when something changed."""

import dataclasses
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT_RTX
from sbs_deploy.legalise import graph as legalise
from sbs_deploy.legalise.graph import Legalisation, legal_model
from sbs_deploy.lint.run import lint_model
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def types(path: Path) -> dict[str, int]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}


def test_int8_for_tensorrt_leaves_no_float32(run: RunDir) -> None:
    legal = legal_model(run, TENSORRT_RTX, Legalisation(precision="int8"))
    assert legal.path == run.deploy / "legal" / "model.int8.tensorrt-rtx.onnx"
    assert TensorProto.FLOAT not in types(legal.path).values()
    assert legal.details["float32_layers"] == [] and legal.details["golden"]["images"] == 4
    rules = [[f.rule.id for f in lint_model(onnx.load(p), ["trt"]).findings] for p in (legal.path, run.model_trt)]
    assert "fp32" not in rules[0] and "fp32" in rules[1], "only the plan's own file has it"


def test_what_is_current_is_not_made_again(run: RunDir) -> None:
    options = Legalisation(precision="int8")
    legal = legal_model(run, TENSORRT_RTX, options)
    before = legal.path.stat().st_mtime_ns
    legal_model(run, TENSORRT_RTX, options)
    assert legal.path.stat().st_mtime_ns == before
    legal_model(run, TENSORRT_RTX, dataclasses.replace(options, activations="promote"))
    assert legal.path.stat().st_mtime_ns != before


@pytest.mark.parametrize(("backend", "last"), [(TENSORRT_RTX, 127), (ONNXRUNTIME, 255)])
def test_promoted_activations_need_no_clip(run: RunDir, backend: object, last: int) -> None:
    legal = legal_model(run, backend, Legalisation(precision="int8", activations="promote"))  # type: ignore[arg-type]
    model = onnx.load(legal.path)
    assert not [node for node in model.graph.node if node.op_type == "Clip"]
    # One input has 4 bits; in ONNX Runtime's uint8 the 8-bit one that is not negative gets 255 codes as well.
    assert legal.details["promoted_layers"] == (1 if last == 127 else 2)
    scales = {t.name: float(numpy_helper.to_array(t)) for t in model.graph.initializer if "conv2.input_scale" in t.name}
    assert [pytest.approx(0.04 * 15 / last, rel=1e-3)] == list(scales.values())


def test_depthwise_layers_can_stay_in_float16(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(run.plan)
    layers = [
        layer.model_copy(update={"kind": "depthwise"}) if layer.name == "conv3" else layer for layer in plan.layers
    ]
    monkeypatch.setattr(legalise, "load_plan", lambda path: plan.model_copy(update={"layers": layers}))
    legal = legal_model(run, TENSORRT_RTX, Legalisation(precision="int8", depthwise="fp16"))
    stored = {t.name: t.data_type for t in onnx.load(legal.path).graph.initializer}
    assert stored["conv1.weight"] == TensorProto.INT8 and stored["conv3.weight_fp16"] == TensorProto.FLOAT16
    assert legal.details["float_depthwise_layers"] == 1


def test_depthwise_float16_where_there_is_none(run: RunDir) -> None:
    with pytest.raises(SbsError, match="--depthwise fp16: onnxruntime has no FP16 convolutions"):
        legal_model(run, ONNXRUNTIME, Legalisation(precision="int8", depthwise="fp16"))
