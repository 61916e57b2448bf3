"""sweep.json: what is read is what was written, and what contradicts itself is refused."""

import pytest
from pydantic import ValidationError

from sbs_train.contract.sweep import SweepResult, SweepRun, save_sweep

RUN = {"target": "60x", "run": "60x", "reached": True, "reduction": 60.5, "bops": 1e9, "score": 90.0, "on_front": True}
LOST = {"target": "90x", "run": "90x", "error": "the loss is nan"}


def result(*runs, **changes):
    fields = {
        "model": "resnet20",
        "data": "digits",
        "unit": "BOPs",
        "score_name": "top1",
        "score_fp32": 91.0,
        "runs": list(runs),
    }
    return {"schema_version": 2, **fields, **changes}


def test_round_trip(tmp_path):
    made = SweepResult.model_validate(result(RUN, LOST))
    save_sweep(made, tmp_path / "sweep.json")
    assert SweepResult.model_validate_json((tmp_path / "sweep.json").read_text()) == made


def test_the_front_is_over_milliseconds_where_there_are_any():
    assert (
        SweepRun(**RUN).cost == 1e9 and SweepRun(**RUN, expected_ms=1.5).cost == 1.5 and SweepRun(**LOST).cost is None
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (result(RUN, RUN), "two runs share a directory"),
        (result({**RUN, "knee": True}, {**RUN, "run": "x", "knee": True}), "more than one run is the knee"),
        (result({**RUN, "error": "failed"}), "either an error or"),
        (result({**RUN, "score": None}), "either an error or"),
        (result({**RUN, "score": float("inf")}), "runs.0.score"),
        (result(RUN, speed=3), "speed"),
        (result(RUN, schema_version=1), "schema_version"),
        ([], "SweepResult"),
    ],
)
def test_what_is_refused(value, words):
    with pytest.raises(ValidationError, match=words):
        SweepResult.model_validate(value)
