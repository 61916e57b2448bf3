"""A stage runs where something that it depends on changed or its output is gone; it is finished once all is written."""

import json
from types import SimpleNamespace

import pytest

from sbs_train.contract import rundir
from sbs_train.stages.context import Stage
from sbs_train.stages.ranks import ALONE
from sbs_train.stages.runner import Made, run_stage
from sbs_train.stages.weights import stage_files


@pytest.fixture
def ctx(tmp_path):
    return SimpleNamespace(run=rundir.create_run(tmp_path), ranks=ALONE, log=lambda message: None)


def stage(output="fp32", **made_from):
    return Stage(name="pretrain", output=output, made_from=made_from)


def made(number, **changes):
    return lambda: Made(write=lambda path: rundir.write_json(path, number), metrics={"top1": 50.0}, **changes)


def test_a_stage_is_skipped_until_what_it_depends_on_changes(ctx):
    path, _ = stage_files(ctx.run, "fp32")
    assert run_stage(ctx, stage(seed="1"), made(1)) is not None
    assert run_stage(ctx, stage(seed="1"), made(2)) is None and path.read_text() == "1\n"
    assert run_stage(ctx, stage(seed="2"), made(2)) is not None and path.read_text() == "2\n"


@pytest.mark.parametrize("lost", ["metrics.json", "checkpoints/fp32.safetensors"])
def test_a_stage_runs_again_if_what_it_left_is_gone(ctx, lost):
    run_stage(ctx, stage(), made(1))
    (ctx.run.root / lost).unlink()
    assert run_stage(ctx, stage(), made(1)) is not None


def test_a_stage_is_not_finished_before_its_output_is_written(ctx):
    def broken(path):
        path.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        run_stage(ctx, stage(), lambda: Made(write=broken))
    assert run_stage(ctx, stage(), made(1)) is not None


def test_metrics_and_the_seconds_of_all_sessions_are_recorded(ctx):
    run_stage(ctx, stage(), made(1, earlier_s=100.0))
    run_stage(ctx, stage("calibration"), lambda: Made(write=lambda path: rundir.write_json(path, {})))
    metrics = json.loads(ctx.run.metrics.read_text())
    assert metrics.keys() == {"fp32", "seconds"} and metrics["fp32"] == {"top1": 50.0}
    assert metrics["seconds"].keys() == {"fp32"} and 100 <= metrics["seconds"]["fp32"] < 160
