"""Distillation: the distance by hand, the teacher's weights are pretraining's, and its pull is felt."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sbs_train import cli
from sbs_train.contract.errors import SbsError
from sbs_train.stages import finetune, search
from sbs_train.stages.teacher import Taught, distance
from tests.sbs_train.stages.test_run import SHORT


def test_the_distance_is_relative_and_a_mean_over_the_outputs():
    told = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[2.0]]), "index": torch.tensor([1])}
    found = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([[1.0]]), "aux": torch.tensor([9.0])}
    assert float(distance(found, told)) == pytest.approx((1 / 25 + 1 / 4) / 2)
    with pytest.raises(SbsError, match="no floating output"):
        distance({"loss": torch.zeros(())}, told)


def test_a_taught_model_answers_as_it_is_and_only_it_learns():
    torch.manual_seed(0)
    model, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    taught, x = Taught(model, teacher), torch.randn(4, 3)
    assert torch.equal(taught(x), model(x)) and taught.training
    (found,) = taught.distances
    expected = (model(x) - teacher(x)).square().sum() / teacher(x).square().sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()))
    found.backward()
    assert model.weight.grad is not None and teacher.weight.grad is None


@pytest.mark.slow  # a training
def test_runs_with_a_teacher_stay_nearer_to_the_float_network(tmp_path, monkeypatch):
    teachers = []
    for module in (search, finetune):
        made = module.teacher_of
        monkeypatch.setattr(
            module, "teacher_of", lambda ctx, network, made=made: teachers.append(made(ctx, network)) or teachers[-1]
        )
    short = [*SHORT, "--finetune.epochs", "3", "--target", "40x"]
    for name, flags in (("alone", []), ("taught", ["--teacher", "self", "--teacher-weight", "20"])):
        weights = [] if name == "alone" else ["--weights", str(tmp_path / "alone" / "checkpoints/fp32.safetensors")]
        assert cli.main([*short, *flags, *weights, "--out", str(tmp_path / name)]) == 0
    alone, taught = teachers[:2], teachers[2:]
    assert alone == [None, None] and len(taught) == 2
    state = load_file(tmp_path / "alone" / "checkpoints" / "fp32.safetensors")
    for teacher in taught:
        assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
        assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("alone", "taught")]
    assert files[0] != files[1]
    config = json.loads((tmp_path / "taught" / "config.json").read_text())
    assert (config["teacher"], config["teacher_weight"]) == ("self", 20.0)


def test_settings_that_a_task_would_not_heed_are_refused(tmp_path, capsys):
    from sbs_train.stages.run import compress
    from tests.sbs_train.stages.test_compress import CONFIG, Brightness, TwoInputs

    with pytest.raises(SbsError, match="mixup does not reach"):
        config = dataclasses.replace(CONFIG, mixup=0.2)
        compress(TwoInputs(), Brightness(), target="20x", out=tmp_path / "run", config=config)
    arguments = ["--task", "segmentation", "--data", "folder:x", "--mixup", "0.2", "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2 and "--mixup" in capsys.readouterr().err
