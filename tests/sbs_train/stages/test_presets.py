"""The paper's search: the same code with other values, in all three modes."""

import dataclasses
import json

import pytest

from sbs_train import cli
from sbs_train.contract.config import load_config
from sbs_train.contract.plan import load_plan
from sbs_train.recipes import RECIPES, paper
from sbs_train.stages import loop
from sbs_train.stages.checkpoint import Checkpoint

SHORT = (
    "--width 4 --batch-size 32 --calibrate.batches 1 --search.group-size 2 "
    "--pretrain.epochs 1 --pretrain.steps-per-epoch 3 --search.epochs 2 --search.steps-per-epoch 4 "
    "--finetune.epochs 1 --finetune.steps-per-epoch 3"
).split()
SLOW = pytest.mark.slow
# Thresholds so large and fast that gates flip at every step, the first one after an interruption included.
RESTLESS = "--preset paper --search.lambda 0.5 --search.threshold-start 0.5 --search.lr-threshold 0.1".split()


def train(out, *flags):
    assert cli.main([*SHORT, "--out", str(out), *flags]) == 0
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "paper", *RESTLESS)


def metrics_of(run):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    return metrics


@pytest.mark.parametrize("name", RECIPES)
def test_the_preset_changes_what_the_paper_does_differently_and_leaves_the_task_alone(name):
    base, preset = RECIPES[name], paper(RECIPES[name])
    assert (preset.grid, preset.target, preset.calibrate.method) == ("paper", "none", "percentile")
    search = preset.search
    assert (search.metric, search.units, search.pruning_metric, search.alternate) == ("error", "grid", "norm", True)
    assert (search.threshold_start, search.quantize_residual) == (0.0, False) and search.lambda_
    for field in ("model", "data", "batch_size", "pretrain", "finetune"):
        assert getattr(preset, field) == getattr(base, field)
    for field in ("epochs", "lr", "bits_weights", "bits_activations", "group_size"):
        assert getattr(search, field) == getattr(base.search, field)


def test_flags_change_single_values_of_a_preset():
    command = "fashion-mnist-resnet20 --search.lambda 0.1 --preset paper --target 60x --search.group-size 8"
    given, preset = cli._parse_recipe(cli.Train, cli.PROG, command.split()), paper(RECIPES["fashion-mnist-resnet20"])
    changed = dataclasses.replace(preset.search, lambda_=0.1, group_size=8)
    expected = dataclasses.replace(preset, target="60x", search=changed)
    for field in dataclasses.fields(expected):
        assert getattr(given, field.name) == getattr(expected, field.name)


def test_the_preset_runs_to_the_end(finished):
    plan, metrics = load_plan(finished / "plan.json"), metrics_of(finished)
    assert plan.grid == "paper" and plan.standardise == "mean-std" and not plan.adds
    assert plan.weight_grid(8).level(8).steps == 255
    calibration = json.loads((finished / "checkpoints" / "calibration.json").read_text())
    for row in calibration["layers"].values():
        assert set(row["clips_w"]) == {3.0} and len(set(row["clips_a"])) == 1  # one clip value for all bitwidths
    assert metrics["budget"]["target"] == "none" and metrics["budget"]["reached"]
    rows = metrics["search"]["history"]
    assert [row["lambda"] for row in rows] == [0.5, 0.5]
    assert all(row["flips"] > 0 for row in rows) and plan.cost.reduction > 20
    assert rows[1]["bits_w"] == {row.name: row.bits_w for row in plan.layers[1:-1]}


@pytest.mark.parametrize(("mode", "low", "high"), [("quantize", 15.9, 256), ("prune", 1, 4)])
def test_the_preset_runs_in_the_other_modes(tmp_path, mode, low, high):
    run = train(tmp_path / mode, "--preset", "paper", "--mode", mode)
    config, plan = load_config(run / "config.json"), load_plan(run / "plan.json")
    assert (config.target, config.search.metric, config.mode) == ("none", "error", mode)
    assert low <= plan.cost.reduction <= high
    assert {row.quantized for row in plan.layers} == {mode == "quantize"}
    assert mode == "prune" or all(len(group.kept) == group.size for group in plan.groups)
    rows = metrics_of(run)["search"]["history"]
    kinds = {name.partition(":")[0] for name in rows[-1]["margins"]}
    assert len(rows) == 2 and kinds == ({"p"} if mode == "prune" else {"w", "a"})


def test_a_target_is_met_with_the_preset_too(tmp_path):
    plan = load_plan(train(tmp_path / "target", "--preset", "paper", "--target", "70x") / "plan.json")
    assert 70 <= plan.cost.reduction <= 73.5


def test_a_smaller_lambda_saves_less(finished, tmp_path):
    plan = load_plan(train(tmp_path / "less", *RESTLESS, "--search.lambda", "0.0001") / "plan.json")
    assert load_plan(finished / "plan.json").cost.reduction > 1.2 * plan.cost.reduction


def test_resuming_keeps_the_preset(finished, monkeypatch, capsys):
    before, config = metrics_of(finished), (finished / "config.json").read_text()
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("a stage ran again"))
    assert cli.main(["--resume", "--out", str(finished)]) == 0
    assert (finished / "config.json").read_text() == config and metrics_of(finished) == before
    assert capsys.readouterr().err.count("up to date") == 4


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


# Finished epochs, and steps of the next one.
@pytest.mark.parametrize("stop", [pytest.param((1, 0), marks=SLOW), pytest.param((0, 3), marks=SLOW), (1, 2)])
def test_a_killed_search_resumes_to_the_same_gates(finished, tmp_path, monkeypatch, stop):
    def save_then_die(checkpoint, position):
        save(checkpoint, position)
        if checkpoint.path.stem == "search" and (position.epoch, position.step) == stop:
            raise Killed

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", save_then_die)
    with pytest.raises(Killed):
        train(tmp_path / "killed", *RESTLESS, "--checkpoint-minutes", "1e-6")
    monkeypatch.setattr(Checkpoint, "save", save)
    assert cli.main(["--resume", "--out", str(tmp_path / "killed")]) == 0
    assert metrics_of(tmp_path / "killed") == metrics_of(finished)
    for name in ("plan.json", "weights.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (finished / name).read_bytes()
