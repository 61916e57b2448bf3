"""Settings: round trip, refusals, targets."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sbs_train.contract import config, rundir
from sbs_train.contract.config import (
    GIVEN,
    CalibrateConfig,
    FinetuneConfig,
    PretrainConfig,
    SearchConfig,
    TrainConfig,
    data_words,
    plain_name,
)
from sbs_train.contract.errors import SbsError
from sbs_train.recipes import DEFAULT_RECIPE, PRESETS, RECIPES

CHANGED = TrainConfig(
    model="resnet56",
    width=8,
    data_dir=Path("/data"),
    target="32G",
    mode="prune",
    grid="paper",
    seed=7,
    calibrate=CalibrateConfig(percentile=100.0),
    search=SearchConfig(bits_weights=(2, 4), settle=(0.1, 0.2), metric="error", lambda_=0.1, standardise="mean-std"),
)


PRESET = [preset(recipe) for preset in PRESETS.values() for recipe in RECIPES.values()]


@pytest.mark.parametrize("value", [TrainConfig(), CHANGED, *RECIPES.values(), *PRESET])
def test_round_trip(value: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config.save_config(value, path)
    assert config.load_config(path) == value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epoch": 3}, "epoch"),
        ({"search": {"lamda": 1}}, "search.lamda"),
        ({"pretrain": {"epoch": 1}}, "pretrain.epoch"),
        ({"calibrate": {"batch": 1}}, "calibrate.batch"),
        ({"finetune": {"x": 1}}, "finetune.x"),
        ({"mode": "both"}, "mode"),
        ({"search": {"epochs": "many"}}, "search.epochs"),
        ({"seed": None}, "seed"),
    ],
)
def test_unknown_keys_and_wrong_values_are_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    value = config.to_dict(TrainConfig())
    for key, part in change.items():
        value[key] = {**value[key], **part} if isinstance(part, dict) else part
    rundir.write_json(path, value)
    with pytest.raises(SbsError, match=f"config.json: {named}: .*; start a new run") as caught:
        config.load_config(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict(TrainConfig()))[:200])
    with pytest.raises(SbsError, match="is damaged"):
        config.load_config(path)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"width": 0}, "--width"),
        ({"batch_size": -1}, "--batch-size"),
        ({"target": "0x"}, "--target"),
        ({"calibrate": CalibrateConfig(batches=0)}, "--calibrate.batches"),
        ({"calibrate": CalibrateConfig(percentile=101)}, "--calibrate.percentile"),
        ({"search": SearchConfig(epochs=-1)}, "--search.epochs"),
        ({"pretrained": True}, "--pretrained: nobody publishes weights for resnet20"),
        ({"pretrained": True, "model": "timm:x", "weights": Path("w")}, "--pretrained and --weights"),
        ({"search": SearchConfig(group_size=0)}, "--search.group-size"),
        ({"search": SearchConfig(align=0)}, "--search.align 0"),
        ({"search": SearchConfig(max_pruning_ratio=1.0)}, "--search.max-pruning-ratio"),
        ({"search": SearchConfig(settle=(0.9, 0.5))}, "--search.settle"),
        ({"search": SearchConfig(lr=float("nan"))}, "--search.lr"),
        ({"search": SearchConfig(adaptation=0.0)}, "--search.adaptation"),
        ({"search": SearchConfig(lambda_=0.1)}, "--search.lambda needs --search.metric error"),
        ({"target": "none"}, "--target none needs --search.lambda"),
        ({"target": "none", "search": SearchConfig(metric="error")}, "--target none needs --search.lambda"),
        ({"pretrain": PretrainConfig(epochs=-1)}, "--pretrain.epochs"),
        ({"pretrain": PretrainConfig(steps_per_epoch=0)}, "--pretrain.steps-per-epoch"),
        ({"finetune": FinetuneConfig(lr=0.0)}, "--finetune.lr"),
    ],
)
def test_values_no_stage_can_use_name_their_flag(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(SbsError, match=f"^{flag}"):
        dataclasses.replace(TrainConfig(), **changes).check()


@pytest.mark.parametrize("value", [TrainConfig(), CHANGED, *RECIPES.values(), *PRESET])
def test_recipes_and_defaults_pass(value: TrainConfig) -> None:
    value.check()


def test_no_target_needs_no_lambda_where_nothing_is_searched() -> None:
    TrainConfig(target="none", search=SearchConfig(epochs=0)).check()


def test_a_large_network_may_have_a_large_budget() -> None:
    TrainConfig(target="2T").check()


def test_the_alignment_of_a_device_is_a_number_or_left_to_it(tmp_path: Path) -> None:
    for align in (16, "auto"):
        value = TrainConfig(target="2x", cost=Path("device.json"), search=SearchConfig(align=align))
        value.check()
        config.save_config(value, tmp_path / "config.json")
        assert config.load_config(tmp_path / "config.json") == value
    assert [SearchConfig().multiple_for(size, True) for size in (16, 32, 64)] == [4, 8, 16]
    assert SearchConfig().multiple_for(64, False) == 1 and SearchConfig(align=8).multiple_for(64, True) == 8
    wrong = {**config.to_dict(TrainConfig()), "search": {**config.to_dict(TrainConfig())["search"], "align": "many"}}
    rundir.write_json(tmp_path / "config.json", wrong)
    with pytest.raises(SbsError, match="search.align"):
        config.load_config(tmp_path / "config.json")


def test_the_default_recipe_exists() -> None:
    assert DEFAULT_RECIPE in RECIPES


def test_a_run_of_a_task_in_a_file_is_named_after_it() -> None:
    assert (
        plain_name(TrainConfig(model="torchvision:resnet18", data="folder:some/where")) == "folder-torchvision-resnet18"
    )
    own = TrainConfig(task="work/depth.py:rooms", model="work/net.py:tiny")
    assert plain_name(own) == "depth.py-rooms-net.py-tiny"
    assert data_words("digits", f"{GIVEN}Rooms") == "Rooms"
