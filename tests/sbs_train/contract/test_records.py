"""Records of a run's JSON: what today's code writes is read, another type or range is named, more is left alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract import rundir
from sbs_train.contract.documents import add_metrics, metrics_of, read_record, require_one_run
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import Calibration
from sbs_train.contract.rundir import RunDir

STAGE = {"top1": 97.5, "top5": 100.0, "loss": 0.1, "images": 360}
EPOCH = {
    "epoch": 0, "loss": 1, "lambda": 0.0, "reduction": 16.0, "flips": 0.0, "val_top1": 95, "val_loss": 0.3,
    "bits_w": {"conv": 8}, "bits_a": {"conv": 8}, "kept": {"b": 32}, "margins": {"w:conv": [-0.002, 1]},
}  # fmt: skip
METRICS: dict[str, Any] = {
    "fp32": STAGE,
    "search": {**STAGE, "history": [EPOCH]},
    "finetune": STAGE,
    "budget": {"target": "60x", "unit": "BOPs", "reduction": 61.0, "reached": True, "reachable": [16, 250.0]},
    "seconds": {"fp32": 1.5, "search": 2},
    "bad_images": 3,
}
ROW = {"signed": True, "clips_a": [1.0, 2], "clips_w": [3.0]}
CALIBRATION: dict[str, Any] = {
    "layers": {"conv": ROW, "fc": {"signed": False}},
    "adds": [[{"signed": True, "clip": 1.0}, {"signed": False, "clip": 2}]],
}
WRONG = [
    (METRICS, ("fp32", "top1"), ["97", True, [97], {}]),
    (METRICS, ("fp32",), [[], 3, "x"]),
    (METRICS, ("search",), [None, [], {"history": {}}, {"history": [None]}]),
    (METRICS, ("search", "history", 0, "epoch"), [None, -1, 0.5, True, "0", 2**63]),
    (METRICS, ("search", "history", 0, "margins", "w:conv"), [1, [None], ["1"], [[1]]]),
    (METRICS, ("search", "history", 0, "reduction"), [0, -1, "16"]),
    (METRICS, ("seconds",), [[], {"fp32": None}, {"fp32": "1"}, {"fp32": -1}]),
    (METRICS, ("budget", "reached"), [1, "yes", []]),
    (CALIBRATION, ("layers",), [[], None, {"conv": None}]),
    (CALIBRATION, ("layers", "conv", "signed"), [1, 0, "true", None]),
    (CALIBRATION, ("layers", "conv", "clips_a"), [None, [0], [-1.0], ["1"], [True], 1.0]),
    (CALIBRATION, ("adds",), [None, {}, [[]], [[{"signed": True, "clip": 1.0}]]]),
    (CALIBRATION, ("adds", 0, 1, "clip"), [0, None, "2", -2]),
]


def read(root, document):
    if document is METRICS:
        return metrics_of(RunDir(root))
    return read_record(root / "metrics.json", Calibration, "make it again")


@pytest.mark.parametrize("document", [METRICS, CALIBRATION])
def test_what_is_written_is_read_and_more_is_left_alone(tmp_path, document):
    for more in ({}, {"of a newer version": [{}]}):
        (tmp_path / "metrics.json").write_text(json.dumps({**document, **more}))
        found = read(tmp_path, document)
        assert (
            found.search.history[0].kept == {"b": 32} if document is METRICS else found.layers["conv"].clips_a == [1, 2]
        )


def test_entries_are_added_and_what_is_not_known_stays(tmp_path):
    path = tmp_path / "metrics.json"
    assert add_metrics(RunDir(tmp_path), {"fp32": STAGE, "seconds": {"fp32": 1.5}}).fp32.score == 97.5
    path.write_text(json.dumps({**json.loads(path.read_text()), "of a newer version": [1]}))
    add_metrics(RunDir(tmp_path), {"finetune": STAGE, "seconds": {"finetune": 2.0}})
    seconds = {"fp32": 1.5, "finetune": 2.0}
    assert json.loads(path.read_text()) == {
        "fp32": STAGE, "finetune": STAGE, "seconds": seconds, "of a newer version": [1]
    }  # fmt: skip
    path.write_text(json.dumps({"fp32": 3}))
    with pytest.raises(SbsError, match="fp32"):
        add_metrics(RunDir(tmp_path), {"finetune": STAGE})


@pytest.mark.parametrize(("document", "where", "values"), WRONG)
def test_another_type_or_range_is_named(tmp_path, document, where, values):
    for wrong in values:
        value = copy.deepcopy(document)
        container = value
        for key in where[:-1]:
            container = container[key]
        container[where[-1]] = wrong
        (tmp_path / "metrics.json").write_text(json.dumps(value))
        with pytest.raises(SbsError) as caught:
            read(tmp_path, document)
        told = str(caught.value)
        assert "metrics.json" in told and all(str(key) in told for key in where[:2]) and "again" in told
        assert "\n" not in told and len(told) < 600


@given(st.sampled_from([None, [], 3, "x", [{"fp32": 1}]]))
def test_a_document_that_is_no_object_is_refused(tmp_path_factory, value):
    root = tmp_path_factory.getbasetemp()
    (root / "metrics.json").write_text(json.dumps(value))
    for document in (METRICS, CALIBRATION):
        with pytest.raises(SbsError, match="again"):
            read(root, document)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"profile": {"opt": 0, "max": 8}}, "profile.opt"),
        ({"profile": {"opt": True}}, "profile.opt"),
        ({"profile": []}, "profile"),
        ({"settings": {"workspace_mib": "64"}}, "settings.workspace_mib"),
        ({"legal": None}, "legal"),
        ({"legal": {"golden": {"top1": 300}}}, "legal.golden"),
        ({"compute_capabilities": [8.9]}, "compute_capabilities"),
        ({"build_seconds": "1"}, "build_seconds"),
        ({"float_layers": "conv"}, "float_layers"),
        ({"hardware": {"gpu": 3}}, "hardware.gpu"),
        ({"plan": 3}, "plan"),
    ],
)
def test_details_of_a_manifest_are_of_their_types(tmp_path, details, words):
    artifact = tmp_path / "a.engine"
    artifact.write_bytes(b"x")
    rundir.write_manifest(artifact, {}, details={"plan": "1", "of a newer version": [{}]})
    assert rundir.read_manifest(artifact).details["of a newer version"] == [{}]
    path = rundir.manifest_path(artifact)
    path.write_text(json.dumps({**json.loads(path.read_text()), "details": details}))
    with pytest.raises(SbsError, match=words):
        rundir.read_manifest(artifact)


@pytest.mark.parametrize("stage", range(3))
def test_a_run_in_which_another_training_was_stopped_is_two_runs(tmp_path: Path, stage: int) -> None:
    run = RunDir(tmp_path)
    chain = [
        ("", run.checkpoints / "fp32.safetensors"),
        ("fp32", run.checkpoints / "calibration.json"),
        ("calibration", run.checkpoints / "search.safetensors"),
        ("search", run.weights),
    ]
    made_from: dict[str, str] = {}
    for (word, path), (after, _) in zip(chain, [*chain[1:], ("", None)], strict=True):
        rundir.write_text(path, word)
        rundir.write_manifest(path, made_from)
        made_from = {after: rundir.sha256_of(path)}
    require_one_run(run)
    rundir.write_text(chain[stage][1], "of another training")
    require_one_run(run)  # unfinished, which whoever reads it is told
    rundir.write_manifest(chain[stage][1], rundir.read_manifest(chain[stage + 1][1]).made_from if stage else {})
    with pytest.raises(SbsError, match=f"--resume --out {tmp_path}"):
        require_one_run(run)
