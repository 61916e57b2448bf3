"""The command line: wrong input is one line and exit 2, profile agrees with the published costs."""

import json

import pytest
from safetensors.torch import save_file

from sbs_train import cli
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model resnet21", "unknown model resnet21; choose one of resnet20, resnet56"),
        ("--data mnist", "unknown data set mnist"),
        ("--data fashion-mnist --data-dir /nowhere", "--data-dir /nowhere is not a directory"),
        ("--target 0x", "give 1x or more"),
        ("--target -5x", "not a reduction"),
        ("--target 60", "did you mean 60x"),
        ("--target banana", "not a reduction"),
        ("--search.bits-weights 2 3 8", "use bitwidths such as 2 4 8"),
        ("--search.bits-activations 4 2", "ascending"),
        ("--search.bits-weights 2 4 16", "within 2..8"),
        ("--weights /nowhere/w.safetensors", "cannot read /nowhere/w.safetensors"),
        ("--device cuda:7", "choose auto, cpu or cuda"),
        ("--search.epochs -1", "--search.epochs -1 must be 0 or more"),
        ("--search.max-pruning-ratio 1", "below 1"),
        ("--search.lr-threshold -1", "--search.lr-threshold -1"),
        ("--search.adaptation 0", "--search.adaptation 0"),
        ("--target none", "--target none needs --search.lambda"),
        ("--target none --search.metric error", "--target none needs --search.lambda"),
        ("--search.lambda 0.1", "--search.lambda needs --search.metric error"),
        ("--preset paper --search.metric loss", "--search.lambda needs --search.metric error"),
        ("--preset thesis", "--preset"),
        ("--pretrain.momentum 2", "below 1"),
        ("--seed -1", "--seed -1 must lie in"),
        ("--out latest", "choose another name"),
        ("--weights /etc/passwd", "/etc/passwd"),
        ("--batch-size 0", "--batch-size 0 must be above 0"),
        ("--mode everything", "--mode"),
        ("--no-such-flag 3", "--no-such-flag"),
        ("mnist-resnet", "unknown recipe or command mnist-resnet; choose one of digits-resnet20"),
        ("--resume --out /nowhere", "no run at /nowhere"),
        ("evaluate /nowhere", "no run at /nowhere"),
        ("profile --model resnet20 --input 3,224", "--input 3,224"),
        ("profile --model vgg99", "unknown model vgg99"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sbs_train.stages.run.pretrain", lambda *_: pytest.fail("training began"))
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and out == ""
    assert err.count("\n") == 1 and err.startswith("sbs-train: error: ")
    assert not list(tmp_path.iterdir())


def test_an_output_directory_that_cannot_be_written_to(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["--out", str(tmp_path / "file" / "run")]) == 2
    err = capsys.readouterr().err
    assert "choose another directory with --out" in err and err.count("\n") == 1


def test_profile_gives_the_published_cost(capsys):
    assert cli.main("profile --model resnet20 --input 3,32,32 --classes 100 --json".split()) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bops_fp32"] == pytest.approx(41.80e9, rel=1e-3)
    assert found["macs"] * 1024 == found["bops_fp32"] == sum(1024 * row["macs"] for row in found["layers"])
    assert {"id", "size", "prunable", "reason"} <= set(found["groups"][0])


def test_recipes_are_listed(capsys):
    assert cli.main(["recipes", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = json.loads(lines[-1])
    assert lines[0].startswith("digits-resnet20") and {"fashion-mnist-resnet20", "imagenet-mobilenetv2"} < set(named)
    assert [line.split()[0] for line in lines[:-1]] == list(named)


def test_a_recipe_sets_the_defaults_and_flags_change_them():
    train = cli._parse_recipe(
        cli.Train, cli.PROG, ["fashion-mnist-resnet20", "--target", "32G", "--search.lambda", "0.1"]
    )
    assert (train.data, train.target, train.search.lambda_) == ("fashion-mnist", "32G", 0.1)
    assert cli._parse_recipe(cli.Train, cli.PROG, []).data == "digits"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_anything_is_written(tmp_path, capsys, value):
    state = build_model(ModelSpec(name="resnet20", arguments={"width": 8, "num_classes": 10}), 1).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "mine.safetensors")
    arguments = ["--weights", str(tmp_path / "mine.safetensors"), "--width", "8", "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "mine.safetensors" in told and "layer1.0.conv1.weight" in told
    assert not (tmp_path / "run").exists()
