from pathlib import Path

import pytest

from sbs_deploy.report.codes import code_histograms
from sbs_deploy.report.provenance import train_command
from sbs_train.cli import main
from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, load_config, to_dict
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.recipes import RECIPES
from tests.sbs_deploy.graphs import make_run


def command_of(tmp_path: Path, config: TrainConfig) -> str | None:
    run = rundir.create_run(tmp_path)
    rundir.write_json(run.config, to_dict(config))
    return train_command(run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_name(tmp_path: Path, recipe: str) -> None:
    expected = "sbs-train" if recipe == "digits-resnet20" else f"sbs-train {recipe}"
    assert command_of(tmp_path, RECIPES[recipe]) == expected


ARGUMENTS = [
    [],
    ["--seed", "3", "--target", "30x", "--search.epochs", "4", "--search.bits-weights", "4", "8"],
    ["fashion-mnist-resnet20", "--search.no-quantize-residual", "--sync-batchnorm", "--finetune.milestones", "2", "4"],
    ["--model", "a name; rm -rf", "--search.metric", "error", "--search.lambda", "0.5"],
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_command_gives_the_settings_back(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line makes of the command is what it was made of."""
    import shlex

    seen: list[TrainConfig] = []

    def train(config: TrainConfig, out: Path, *, fresh: bool) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("sbs_train.stages.run.train", train)
    main([*arguments, "--out", str(tmp_path / "out")])
    command = command_of(tmp_path / "run", seen[0])
    assert command is not None
    main([*shlex.split(command)[1:], "--out", str(tmp_path / "out")])
    assert seen[0] == seen[1]


def test_settings_of_another_version_have_no_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert train_command(run) is not None and load_config(run.config).model == "resnet20"
    rundir.write_json(run.config, {"model": "resnet20", "of_tomorrow": 1})
    assert train_command(run) is None


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def test_histograms_count_every_weight_once(run: RunDir) -> None:
    found = code_histograms(run, load_plan(run.plan))
    assert [one.title for one in found] == ["1 layer of 2 bits", "2 layers of 8 bits", "conv1", "conv2", "conv3"]
    sizes = {one.title: one.weights for one in found}
    assert sizes["conv1"] == 3 * 16 * 9 and sizes["2 layers of 8 bits"] == sizes["conv1"] + sizes["conv3"]
    assert all(list(one.counts) == sorted(one.counts) and min(one.counts) >= -7 for one in found)


def test_a_run_without_codes_has_no_histograms(run: RunDir) -> None:
    run.codes.unlink()
    assert code_histograms(run, load_plan(run.plan)) == ()
