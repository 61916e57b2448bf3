"""validation.json, also as it was written for networks with one output of logits."""

import json
from pathlib import Path

import pytest

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.validation import Classes, Compared, Validation, read_validation, write_validation

OLD_OUTPUT = {
    "images": 12,
    "top1": 75.0,
    "top1_agreement": 100.0,
    "disagreeing": 0,
    "undecided": 1,
    "top1_change": 0.0,
    "max_abs_diff": 0.5,
    "error": 1e-3,
    "rounding": None,
}
OLD = {
    "passed": True,
    "images": 12,
    "float_qdq": {"trt": OLD_OUTPUT, "ort": OLD_OUTPUT},
    "integer": OLD_OUTPUT,
    "identity": {"images": 4, "error": {"slim": 1e-6, "trt": None}, "limit": 3e-5, "quantizers_equal": True},
    "engines": [{"engine": "e", "passed": True, "against_reference": OLD_OUTPUT}],
}


def test_an_older_file_is_read_as_one_output() -> None:
    found = Validation.model_validate_json(json.dumps(OLD))
    one = Compared(
        samples=12,
        classes=Classes(top1=75.0, top1_agreement=100.0, disagreeing=0, undecided=1, top1_change=0.0),
        max_abs_diff=0.5,
        error=1e-3,
        rounding=None,
    )
    assert found.samples == 12 and found.integer == {"logits": one}
    assert found.float_qdq == {"trt": {"logits": one}, "ort": {"logits": one}}
    assert found.engines[0].against_reference == {"logits": one}
    assert found.identity is not None and found.identity.samples == 4
    assert (found.identity.error, found.identity.limit) == (
        {"slim": {"logits": 1e-6}, "trt": {"logits": None}},
        {"logits": 3e-5},
    )


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = rundir.create_run(tmp_path)
    found = Validation.model_validate_json(json.dumps(OLD))
    write_validation(found, run)
    assert read_validation(run) == found


@pytest.mark.parametrize("integer", [{"logits": {"samples": 3}}, {"images": 3}, [], {"logits": OLD_OUTPUT}])
def test_a_damaged_file_names_the_command_that_makes_it(tmp_path: Path, integer: object) -> None:
    run = rundir.create_run(tmp_path)
    rundir.write_json(run.validation, {**OLD, "integer": integer})
    with pytest.raises(SbsError, match="sbs-deploy validate"):
        read_validation(run)
