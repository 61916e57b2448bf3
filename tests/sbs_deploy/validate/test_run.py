"""Validation passes on a sound export, and names the layer that was broken on purpose."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sbs_deploy.export.codes import load_arrays
from sbs_deploy.validate.run import validate_run
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Classes, Compared
from tests.sbs_deploy.corruption import save_signed, signed

BROKEN = "layer2.1.conv1"


def edit(path: Path, initializer: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == initializer)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(value.copy()).astype(value.dtype), initializer))
    onnx.save(model, path)
    signed(path)


def classes(found: dict[str, Compared]) -> Classes:
    """The comparison of the only output's classes."""
    (one,) = found.values()
    assert one.classes is not None
    return one.classes


def flip_one(codes: np.ndarray) -> np.ndarray:
    codes.flat[7] += 1
    return codes


def test_sound_export_passes(exported: RunDir) -> None:
    report = validate_run(exported)
    document = report.model_dump(mode="json")
    assert report.passed and report.codes_equal and document["first_divergence"] is None
    assert document["samples"] == 360 and set(document["float_qdq"]) == {"trt", "ort"}
    assert document["top1_agreement"] >= 99.7 and document["agreement_integer"] >= 99
    assert document["max_abs_diff"] < 1
    assert abs(document["top1_integer"] - document["top1_pytorch"]) <= 100 / 360 + 1e-9
    assert rundir.read_json(exported.validation) == document


@pytest.mark.parametrize("name", ["model_trt", "model_ort"])
def test_one_wrong_code_fails_and_names_the_layer(run_copy: RunDir, name: str) -> None:
    edit(getattr(run_copy, name), f"{BROKEN}.weight", flip_one)
    report = validate_run(run_copy)
    assert not report.passed and not report.codes_equal
    assert report.first_divergence == BROKEN
    assert rundir.read_json(run_copy.validation)["passed"] is False


@pytest.mark.parametrize("name", ["model_trt", "model_ort"])
@pytest.mark.parametrize("what", ["weight_scale", "input_scale"])
def test_a_wrong_scale_fails_and_names_the_layer(run_copy: RunDir, name: str, what: str) -> None:
    edit(getattr(run_copy, name), f"{BROKEN}.{what}", lambda scale: scale * 4)
    report = validate_run(run_copy)
    assert not report.passed and report.codes_equal
    assert report.first_divergence == BROKEN


def test_a_scale_that_is_not_a_number_fails(run_copy: RunDir) -> None:
    # In the last layer: quantizers in between turn it into a number.
    edit(run_copy.model_trt, "fc.weight_scale", lambda scale: scale * np.nan)
    report = validate_run(run_copy)
    assert not report.passed and report.first_divergence == "fc"
    assert report.max_abs_diff is None, "JSON has no NaN"


def tie(run: RunDir, images: int) -> None:
    """Make golden.npz that of a network whose top two classes are so close that float32 picks the wrong one."""
    golden = load_arrays(run.golden)
    logits = golden["exact/output"].copy()
    assert len(logits) == 256
    first, second = np.argsort(logits, axis=1)[:, :-3:-1].T
    rows = np.arange(len(logits))
    gap = logits[rows, first] - logits[rows, second]
    few = np.argsort(gap)[:images]
    logits[few, second[few]] += gap[few] * 1.01
    golden["output/output"] = np.concatenate([logits.astype(np.float32), golden["output/output"][256:]])
    save_signed(golden, run.golden)


def test_what_pytorch_itself_cannot_decide_is_not_held_against_a_file(run_copy: RunDir) -> None:
    tie(run_copy, 20)
    report = validate_run(run_copy)
    integer, floats = classes(report.integer), [classes(one) for one in report.float_qdq.values()]
    assert report.passed and integer.undecided >= 15
    assert all(one.undecided == 20 and one.disagreeing <= 1 for one in floats)
    assert floats[0].top1_agreement < 95, "the figure people read counts every sample"
    assert abs(integer.top1_change) < 1
    golden = load_arrays(run_copy.golden)
    del golden["exact/output"]
    save_signed(golden, run_copy.golden)
    assert not validate_run(run_copy).passed, "nothing says that it was rounding"


def test_a_wrong_file_gets_no_benefit_of_the_doubt(run_copy: RunDir) -> None:
    tie(run_copy, 20)
    edit(run_copy.model_trt, f"{BROKEN}.weight_scale", lambda scale: scale * 4)
    report = validate_run(run_copy)
    assert not report.passed and report.first_divergence == BROKEN
    assert classes(report.float_qdq["trt"]).undecided == 0


def test_golden_of_another_network_fails(run_copy: RunDir) -> None:
    golden = load_arrays(run_copy.golden)
    save_signed({**golden, "output/output": np.roll(golden["output/output"], 1, axis=1)}, run_copy.golden)
    assert not validate_run(run_copy).passed


@pytest.mark.parametrize("name", ["model_trt", "model_ort", "golden", "codes"])
@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_damaged_files_are_refused_in_one_line(run_copy: RunDir, name: str, damage: str) -> None:
    path = getattr(run_copy, name)
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "truncate" else b"")
    with pytest.raises(SbsError, match=f"{path.name}.*sbs-deploy export") as error:
        validate_run(run_copy)
    assert "\n" not in str(error.value)


def test_golden_without_its_parts_is_refused(run_copy: RunDir) -> None:
    golden = load_arrays(run_copy.golden)
    del golden["output/output"]
    save_signed(golden, run_copy.golden)
    with pytest.raises(SbsError, match="lacks output/output"):
        validate_run(run_copy)


def test_weights_that_changed_after_the_export_are_named(run_copy: RunDir) -> None:
    content = bytearray(run_copy.weights.read_bytes())
    content[-1] ^= 0x80  # a sign
    run_copy.weights.write_bytes(content)
    with pytest.raises(SbsError, match=r"weights\.safetensors changed.*sbs-train --resume"):
        validate_run(run_copy)


@pytest.mark.parametrize("name", ["golden", "codes", "model_slim", "model_ort", "model_trt"])
def test_a_file_without_a_manifest_is_not_judged(run_copy: RunDir, name: str) -> None:
    path = getattr(run_copy, name)
    rundir.manifest_path(path).unlink()
    with pytest.raises(SbsError, match=f"no manifest.*sbs-deploy export {run_copy.root}"):
        validate_run(run_copy)
