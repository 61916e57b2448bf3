"""A network with two inputs and five outputs, from the model at hand to engines on every backend."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import sbs_deploy
from sbs_deploy.backends.spec import OPENVINO, TENSORRT_RTX, import_problem
from sbs_deploy.cli import main
from sbs_deploy.report.validation import validation_rows
from sbs_deploy.validate.run import validate_run
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Validation
from tests.sbs_deploy.corruption import signed
from tests.sbs_deploy.golden import golden_of
from tests.sbs_deploy.named_run import Mixed, make_named_run, mixed_example

BATCHES = [(mixed_example(7), None), (mixed_example(12), None)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_named_run(tmp_path_factory.mktemp("runs") / "mixed", Mixed(), mixed_example(), BATCHES)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_named_run(tmp_path / "mixed", Mixed(), mixed_example(), BATCHES)


def test_every_output_is_validated(whole: RunDir) -> None:
    found = validate_run(whole)
    assert found.passed and found.samples == 19 and found.top1_agreement is None and found.top1_integer is None
    names = ["map", "last", "number", "which", "large"]
    assert found.integer is not None and list(found.integer) == list(found.float_qdq["trt"]) == names
    assert [name for name, one in found.integer.items() if one.values is not None] == ["which", "large"]
    assert found.identity is not None and list(found.identity.limit) == names
    assert Validation.model_validate_json(found.model_dump_json()) == found
    assert validation_rows(found)


def test_a_wrong_weight_shows_in_the_outputs_behind_it(run: RunDir) -> None:
    model = onnx.load(run.model_trt)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "wide.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 4, scale.name))
    onnx.save(model, run.model_trt)
    signed(run.model_trt)
    found = validate_run(run)
    assert not found.passed and found.first_divergence == "wide"
    assert found.float_qdq["trt"]["number"].error > 0.1 > found.float_qdq["trt"]["map"].error  # type: ignore[operator]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_engines_answer_by_name(whole: RunDir, backend: str, precision: str) -> None:
    if backend == "openvino" and import_problem(OPENVINO) is not None:
        pytest.skip("needs openvino")
    built = sbs_deploy.build(whole, precision, backend, placement="plan")  # type: ignore[arg-type]
    golden = golden_of(whole)
    with sbs_deploy.load(built) as engine:
        assert {spec.name: spec.dtype for spec in engine.inputs} == {"image": "float32", "word": "int64"}
        found = engine.run(golden.first_inputs(11))
    for name, array in golden.first(11).outputs.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
    scale = np.abs(golden.outputs["map"]).max()
    np.testing.assert_allclose(found["map"], golden.outputs["map"][:11], atol=0.1 * scale)


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "fp32"])
def test_tensorrt_builds_it(whole: RunDir, precision: str) -> None:
    built = sbs_deploy.build(whole, precision, "tensorrt-rtx")  # type: ignore[arg-type]
    assert built.details["shapes"]["word"] == ["batch"] and built.details["shapes"]["number"] == ["batch"]
    assert built.details["float_layers"] in ([], None) or precision == "fp8"


@pytest.mark.slow  # times graphs
def test_placement_and_bench_take_golden_samples_by_name(whole: RunDir) -> None:
    built = sbs_deploy.build(whole, placement="measured", placement_minutes=0.02)
    assert built.details["placement"]["mode"] == "measured"
    rows = sbs_deploy.bench(whole, batch=[1, 3])
    assert {row.batch for row in rows if row.error is None} == {1, 3}


OPEN = {"image": {0: "batch", 2: "height", 3: "width"}}


def test_axes_of_open_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_named_run(tmp_path / "open", Mixed(), mixed_example(), [(mixed_example(6), None)], dynamic=OPEN)
    assert validate_run(run).passed
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino" and import_problem(OPENVINO) is not None:
            continue
        with sbs_deploy.load(sbs_deploy.build(run, "fp32", backend)) as engine:  # type: ignore[arg-type]
            sizes = [8, 12, 8]
            found = [engine.run({k: v.numpy() for k, v in mixed_example(3, size).kwargs.items()}) for size in sizes]
        assert [one["last"].shape for one in found] == [(3, size, size, 16) for size in sizes]
        np.testing.assert_array_equal(found[0]["map"], found[2]["map"])
    for shapes, words in (({"depth": (1, 2)}, "open axes are height, width"), ({"height": (3, 2)}, "1 <= least")):
        with pytest.raises(SbsError, match=words):
            sbs_deploy.build(run, backend="tensorrt-rtx", shapes=shapes)
    with pytest.raises(SbsError, match="takes any size"):
        sbs_deploy.build(run, shapes={"height": (1, 99)})
    if import_problem(TENSORRT_RTX) is not None:
        return
    with pytest.raises(SbsError, match="add --shapes height=LEAST:LARGEST"):
        sbs_deploy.build(run, backend="tensorrt-rtx")
    with pytest.raises(SbsError, match="leaves out 8, the size of the golden samples"):
        sbs_deploy.build(run, backend="tensorrt-rtx", shapes={"height": (9, 16), "width": (4, 16)})
    command = f"build {run.root} --backend tensorrt-rtx --shapes height=4:16 width=8:8 --json"
    assert main(command.split()) == 0
    built = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert built["axes"] == {"height": [4, 8, 16], "width": [8, 8, 8]}
