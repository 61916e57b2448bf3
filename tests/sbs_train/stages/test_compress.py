"""`compress` with a model and a task that nobody can name: two inputs, a dict of outputs, a score without a loss."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sbs_deploy
from sbs_train import cli
from sbs_train.contract.config import (
    CalibrateConfig,
    FinetuneConfig,
    PretrainConfig,
    SearchConfig,
    TrainConfig,
    load_config,
)
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.quant.layers import sbs_layers
from sbs_train.stages import loop
from sbs_train.stages.descent import Descent
from sbs_train.stages.named import model_for
from sbs_train.stages.run import compress
from sbs_train.tasks.load import task_of
from tests.sbs_train.stages.test_run import SHORT

CONFIG = TrainConfig(
    device="cpu",
    checkpoint_minutes=1e-9,
    calibrate=CalibrateConfig(batches=2),
    pretrain=PretrainConfig(epochs=2, lr=0.02),
    search=SearchConfig(epochs=3, steps_per_epoch=10, lr=0.01),
    finetune=FinetuneConfig(epochs=1, lr=0.01),
)


class TwoInputs(nn.Module):
    """The mean of two images' products and sums, in a dict."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.mix, self.norm = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.deep, self.value = nn.Conv2d(32, 32, 3, 1, 1), nn.Linear(32, 1)

    def forward(self, left, *, right):
        x = F.relu(self.norm(self.mix(F.relu(self.left(left) + self.right(right)))))
        return {"value": self.value(F.relu(self.deep(x)).mean((2, 3)))}


class Brightness:
    """Which of two noisy images is brighter, and by how much; only the score `minus_error` is given."""

    def __init__(self, broken=None):
        self.broken = broken

    def train_batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(12):
            level_N2 = torch.rand(16, 2, generator=generator)
            left, right = (
                torch.randn(16, 1, 6, 6, generator=generator) + 4 * level_N2[:, i, None, None, None] for i in (0, 1)
            )
            yield {"left": left, "right": right, "difference": level_N2[:, 0] - level_N2[:, 1]}

    def inputs(self, batch):
        return {"left": batch["left"], "right": batch["right"]}

    def loss(self, model, batch):
        found = model(**self.inputs(batch))["value"][:, 0]
        return F.mse_loss(found, batch["difference"])

    def evaluate(self, model, split):
        batch = next(iter(self.train_batches({"val": 10**6, "test": 10**6 + 1}[split])))
        return {"minus_error": -100 * float(self.loss(model, batch).detach()) ** 0.5, "samples": 16}


def run(out, **changes):
    torch.manual_seed(0)
    return compress(TwoInputs(), Brightness(), target="20x", out=out, config=dataclasses.replace(CONFIG, **changes))


def files_of(root):
    metrics = json.loads((root / "metrics.json").read_text())
    metrics.pop("seconds")
    metrics["search"]["tournament"].pop("seconds")
    return (root / "plan.json").read_text(), (root / "weights.safetensors").read_bytes(), metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "whole")


def test_a_model_at_hand_is_trained_searched_and_fine_tuned(whole):
    metrics = files_of(whole.run.root)[2]
    assert list(metrics["finetune"]) == ["minus_error", "samples"] and whole.reached
    assert metrics["finetune"]["minus_error"] > -12  # noise alone: the differences' deviation is 40
    assert [one.name for one in whole.plan.inputs] == ["left", "right"] and whole.plan.outputs[0].name == "value"
    assert "val_minus_error" in metrics["search"]["history"][-1] and "val_loss" not in metrics["search"]["history"][-1]
    table = metrics["search"]["tournament"]
    assert table["measure"] == "-minus_error" and table["moves_tried"] == 0
    (kept,) = (row for row in table["entrants"] if row["kept"])
    assert kept["val_loss_trained"] == min(r["val_loss_trained"] for r in table["entrants"] if r["val_loss_trained"])
    found = Brightness().evaluate(whole.model, "test")
    assert float(found["minus_error"]) == metrics["finetune"]["minus_error"]


def test_the_model_at_hand_is_exported_and_its_engine_evaluated(whole, tmp_path):
    golden = [Brightness().inputs(batch) for batch in Brightness().train_batches(1)]
    run = sbs_deploy.export(whole.model, whole.plan, out=tmp_path / "run", golden=golden)
    sbs_deploy.build(run, "int8", "onnxruntime", placement="plan", legalise="exact", outputs="none")
    found = sbs_deploy.evaluate(run, Brightness(), backend="onnxruntime")
    assert found["minus_error"] == pytest.approx(whole.metrics.finetune.score, abs=0.5)
    with pytest.raises(SbsError, match="sbs_train.compress"):
        sbs_deploy.evaluate(run, backend="onnxruntime")


def test_a_run_that_was_stopped_goes_on_to_the_same_files(whole, tmp_path, monkeypatch):
    step, left = Descent.step, [30]

    def stopping(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "step", stopping)
        torch.manual_seed(0)
        model = TwoInputs()
        with pytest.raises(KeyboardInterrupt):
            compress(model, Brightness(), target="20x", out=tmp_path / "run", config=CONFIG)
        assert next(sbs_layers(model), None) is None
    assert files_of(run(tmp_path / "run").run.root) == files_of(whole.run.root)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("a stage ran again"))
    assert run(tmp_path / "run").plan == whole.plan


def test_other_weights_at_hand_start_anew(tmp_path):
    config = {
        "pretrain": PretrainConfig(epochs=0),
        "search": SearchConfig(epochs=0),
        "finetune": FinetuneConfig(epochs=0),
    }
    run(tmp_path / "run", **config)
    first = (tmp_path / "run" / "weights.safetensors").read_bytes()
    model = TwoInputs()
    compress(model, Brightness(), target="none", out=tmp_path / "run", config=dataclasses.replace(CONFIG, **config))
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() != first


def test_the_command_line_says_that_only_the_code_can_go_on(whole, capsys):
    for arguments in (["--resume", "--out", str(whole.run.root)], ["evaluate", str(whole.run.root)]):
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert "TwoInputs" in said and "sbs_train.compress" in said and said.count("\n") == 1


def test_the_command_line_is_a_client(tmp_path):
    assert cli.main([*SHORT, "--target", "50x", "--out", str(tmp_path / "command")]) == 0
    config = load_config(tmp_path / "command" / "config.json")
    task = task_of(config)
    compress(model_for(config, task), task, target="50x", out=tmp_path / "call", config=config, by_name=True)
    for name in ("plan.json", "weights.safetensors"):
        assert (tmp_path / "call" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    assert cli.main(["--resume", "--out", str(tmp_path / "call")]) == 0


def test_what_a_task_does_wrong_is_said_before_any_work(tmp_path):
    class Detached(Brightness):
        def loss(self, model, batch):
            return super().loss(model, batch).detach()

    class Vector(Brightness):
        def loss(self, model, batch):
            return super().loss(model, batch)[None]

    class Alone(Brightness):
        def loss(self, model, batch):
            return torch.ones((), requires_grad=True)

    class Part(Brightness):
        def exported(self, model):
            return model.left

    faults = (
        (Part(), "exported returns another module"),
        (Detached(), "does not require grad"),
        (Vector(), r"\[1\]"),
        (Alone(), "does not depend on"),
    )
    for task, said in faults:
        with pytest.raises(SbsError, match=said):
            compress(TwoInputs(), task, target="20x", out=tmp_path / "run", config=CONFIG)
    assert not (tmp_path / "run").exists()


TASK = """
import sys
sys.path.insert(0, {tests!r})
from tests.sbs_train.stages.test_compress import Brightness, TwoInputs

def task(seed, data_dir):
    assert (seed, data_dir) == (3, None)
    return Brightness()

def wrong():
    return object()
"""


def test_a_task_by_name_runs_from_the_command_line_where_it_is_trusted(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(TASK.format(tests=str(Path(__file__).parents[3])))
    short = [
        *SHORT[4:],
        "--seed",
        "3",
        "--target",
        "12x",
        "--model",
        f"{file}:TwoInputs",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(["--task", f"{file}:wrong", *short]) == 2
    assert "has no train_batches" in capsys.readouterr().err
    assert cli.main(["--task", f"{file}:task", *short]) == 0
    assert "minus_error" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "--trust" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run"), "--model", f"{file}:TwoInputs"]) == 2
    assert "--task" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run"), "--trust", "--json"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == metrics["finetune"]
    assert load_plan(tmp_path / "run" / "plan.json").model.arguments == {}
    assert cli.main(["--task", "detection", "--out", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("task", [Brightness, None, object()])
def test_what_is_no_task_is_refused(tmp_path, task):
    with pytest.raises(SbsError, match="task"):
        compress(TwoInputs(), task, target="20x", out=tmp_path / "run", config=CONFIG)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"), [({"target": 20}, "target"), ({"out": ""}, "out"), ({"config": {}}, "config")]
)
def test_arguments_of_other_kinds_are_refused(tmp_path, changes, named):
    with pytest.raises(SbsError, match=f"^{named} is of type"):
        compress(TwoInputs(), Brightness(), **{"target": "8x", "out": tmp_path / "run", **changes})
    assert not (tmp_path / "run").exists()
