"""The paper's search: the same code with other values, in all three modes."""

import json

import pytest

from sbs_train import cli
from sbs_train.contract.plan import load_plan
from sbs_train.recipes import RECIPES, paper

SHORT = (
    "--width 4 --batch-size 32 --calibrate.batches 2 "
    "--pretrain.epochs 1 --pretrain.steps-per-epoch 6 --search.epochs 2 --search.steps-per-epoch 6 "
    "--finetune.epochs 1 --finetune.steps-per-epoch 6 --search.group-size 2"
).split()


def test_the_preset_changes_what_the_paper_does_differently():
    base = RECIPES["digits-resnet20"]
    preset = paper(base)
    assert (preset.grid, preset.target, preset.calibrate.method) == ("paper", "none", "percentile")
    search = preset.search
    assert (search.metric, search.units, search.pruning_metric) == ("error", "grid", "norm")
    assert search.lambda_ and search.alternate and search.threshold_start == 0
    assert (preset.model, preset.finetune, search.epochs) == (base.model, base.finetune, base.search.epochs)


@pytest.mark.parametrize("mode", ["joint", "prune", "quantize"])
def test_the_preset_runs_in_every_mode(tmp_path, mode):
    run = tmp_path / mode
    assert cli.main([*SHORT, "--preset", "paper", "--mode", mode, "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["target"] == "none" and config["search"]["metric"] == "error" and config["mode"] == mode
    plan = load_plan(run / "plan.json")
    assert plan.standardise == ("mean-std" if mode != "prune" else plan.standardise) and not plan.adds
    assert all(row.quantized == (mode != "prune") for row in plan.layers)


def test_a_larger_lambda_saves_more_where_no_target_is_given(tmp_path):
    reductions = []
    for index, value in enumerate(("0.0001", "5")):
        run = tmp_path / str(index)
        flags = ["--preset", "paper", "--search.lambda", value, "--search.epochs", "6", "--search.lr-threshold", "0.2"]
        assert cli.main([*SHORT, *flags, "--out", str(run)]) == 0
        reductions.append(load_plan(run / "plan.json").cost.reduction)
    assert reductions[1] > 1.5 * reductions[0]


def test_a_resumed_run_keeps_the_preset(tmp_path):
    run = tmp_path / "run"
    assert cli.main([*SHORT, "--preset", "paper", "--out", str(run)]) == 0
    before = (run / "plan.json").read_text()
    assert cli.main(["--resume", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["grid"] == "paper"
    assert (run / "plan.json").read_text() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "none"], "--search.lambda"),
        (["--search.lambda", "0.1"], "--search.metric error"),
        (["--preset", "papre"], "preset"),
    ],
)
def test_wrong_combinations_are_one_line_and_exit_2(tmp_path, capsys, flags, said):
    assert cli.main([*SHORT, *flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
