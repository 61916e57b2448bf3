"""Whole runs on real digits, small and short: what they leave, that they repeat, and that they resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sbs_train import cli
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import open_run
from sbs_train.inputs.data import dataset_of
from sbs_train.stages import loop, search
from sbs_train.stages.weights import restore

SHORT = (
    "--width 4 --batch-size 32 --calibrate.batches 2 "
    "--pretrain.epochs 2 --pretrain.steps-per-epoch 6 --search.epochs 4 --search.steps-per-epoch 6 "
    "--finetune.epochs 2 --finetune.steps-per-epoch 6 --search.group-size 2"
).split()

SLOW = pytest.mark.slow


def train(out, *flags, code=0):
    assert cli.main([*SHORT, "--out", str(out), *flags]) == code
    return out


def files_of(run: Path):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    return (run / "plan.json").read_text(), (run / "weights.safetensors").read_bytes(), metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "one")


def test_without_a_terminal_each_stage_says_how_long_it_is(finished, tmp_path, capsys):
    weights = finished / "checkpoints" / "fp32.safetensors"
    none = ("--search.epochs", "0", "--target", "none", "--finetune.epochs", "1")
    train(tmp_path / "run", *none, "--weights", str(weights))
    said = capsys.readouterr().err.splitlines()
    top1 = json.loads((finished / "metrics.json").read_text())["fp32"]["top1"]
    assert said[0] == f"float weights from {weights}: test top1 {top1:.4g}"
    assert "finetune: 6 steps" in said and not [line for line in said if line.startswith("pretrain")]


def test_the_target_is_hit(finished):
    plan = load_plan(finished / "plan.json")
    assert 60 <= plan.cost.reduction <= 63
    assert plan.layers[0].bits_w == plan.layers[-1].bits_a == 8
    assert len(plan.adds) == 9


def test_a_run_leaves_what_the_contract_names(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "plan.json", "weights.safetensors", "metrics.json", "checkpoints"} <= names
    assert any(name.startswith("events.") for name in names)
    assert not [path for path in finished.rglob("*") if path.name.endswith(".tmp")]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["fp32"]) >= {"top1", "top5", "images"} and metrics["fp32"]["images"] == 360
    assert set(metrics["seconds"]) == {"fp32", "search", "finetune"}
    assert (finished.parent / "latest").resolve() == finished


def test_evaluate_repeats_the_metrics(finished, capsys):
    metrics = json.loads((finished / "metrics.json").read_text())
    for stage in ("fp32", "search", "finetune"):
        assert cli.main(["evaluate", str(finished), "--stage", stage, "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["top1"] == metrics[stage]["top1"] and found["images"] == 360


def test_the_same_seed_gives_the_same_plan_and_weights(finished, tmp_path):
    assert files_of(train(tmp_path / "two")) == files_of(finished)


def test_resuming_a_finished_run_trains_nothing(finished, monkeypatch, capsys):
    before = files_of(finished)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("a stage ran again"))
    assert cli.main(["--resume", "--out", str(finished)]) == 0
    assert files_of(finished) == before and "up to date" in capsys.readouterr().err


def test_changing_a_late_setting_repeats_only_late_stages(finished, tmp_path, capsys):
    run = train(tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["--resume", "--out", str(run), "--finetune.lr", "0.001"]) == 0
    assert "search: up to date" in capsys.readouterr().err
    assert files_of(run)[1] != files_of(finished)[1]


def test_a_run_is_not_overwritten(finished, capsys):
    before = files_of(finished)
    assert cli.main([*SHORT, "--out", str(finished)]) == 2
    assert "--resume" in capsys.readouterr().err and files_of(finished) == before


def test_the_history_says_where_every_gate_stood(finished):
    rows = json.loads((finished / "metrics.json").read_text())["search"]["history"]
    plan = load_plan(finished / "plan.json")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    searched = {row.name for row in plan.layers[1:-1]}
    pruned = {group.id for group in plan.groups if group.prunable}
    for row in rows:
        assert set(row) >= {"loss", "lambda", "reduction", "flips", "bits_w", "bits_a", "kept", "margins"}
        assert set(row["bits_w"]) == set(row["bits_a"]) == searched and set(row["kept"]) == pruned
        assert {*row["bits_w"].values(), *row["bits_a"].values()} <= {2, 4, 8}
        assert set(row["margins"]) == {f"{kind}:{name}" for kind in "wa" for name in searched} | {
            f"p:{name}" for name in pruned
        }
        assert all(len(row["margins"][f"a:{name}"]) == 2 for name in searched)
    # The warm-up takes the first of four epochs, the settling the last: no gate moves in either.
    assert rows[0]["reduction"] == pytest.approx(16) and rows[0]["lambda"] == 0 and rows[0]["flips"] == 0
    assert all(60 <= row["reduction"] <= 63 for row in rows[1:]) and rows[1]["flips"] >= 20 and rows[3]["flips"] == 0
    assert all("val_top1" in row for row in rows[2:])
    # Where the gates are at rest they are the plan's.
    assert rows[3]["bits_w"] == {name: plan.layer(name).bits_w for name in searched}
    assert rows[3]["bits_a"] == {name: plan.layer(name).bits_a for name in searched}
    assert rows[3]["kept"] == {name: len(plan.group(name).kept) for name in pruned}
    assert rows[3]["reduction"] == pytest.approx(plan.cost.reduction) and rows[3]["lambda"] > 0


def test_scalars_are_logged(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(finished), size_guidance={"scalars": 0}).Reload()
    tags = set(log.Tags()["scalars"])
    wanted = {"search/lambda", "search/reduction", "search/loss", "search/val_top1", "bits_w/layer1.0.conv1"}
    assert (
        wanted
        | {
            "kept/layer1.0.conv1",
            "bits_a/layer3.2.conv2",
            "margin/w:layer1.0.conv1/1",
            "finetune/val_top1",
            "pretrain/loss",
        }
        <= tags
    )
    assert len(log.Scalars("search/reduction")) == 4


@pytest.mark.parametrize(
    ("mode", "target"), [("quantize", "60x"), ("prune", "1.5x"), pytest.param("joint", "100x", marks=SLOW)]
)
def test_modes_hit_their_targets(tmp_path, mode, target):
    plan = load_plan(train(tmp_path / mode, "--mode", mode, "--target", target) / "plan.json")
    wanted = float(target[:-1])
    assert wanted <= plan.cost.reduction <= wanted * 1.05
    pruned = any(len(group.kept) < group.size for group in plan.groups)
    assert pruned if mode == "prune" else mode != "quantize" or not pruned
    assert {row.quantized for row in plan.layers} == {mode != "prune"}


@pytest.mark.slow
def test_paper_grid(tmp_path):
    plan = load_plan(train(tmp_path / "paper", "--grid", "paper") / "plan.json")
    assert plan.grid == "paper" and plan.weight_grid(8).level(8).steps == 255


def test_weights_of_a_user_skip_pretraining(finished, tmp_path, capsys):
    run = train(tmp_path / "own", "--weights", str(finished / "checkpoints" / "fp32.safetensors"))
    assert "pretrain 1/" not in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["fp32"] == files_of(finished)[2]["fp32"]


def test_an_unreachable_target_ends_with_the_best_plan(tmp_path, capsys):
    run = train(tmp_path / "far", "--target", "5000x", "--json", code=1)
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert not document["reached"] and document["reduction"] == pytest.approx(document["reachable"][1])
    assert "5000x cannot be reached" in err and not json.loads((run / "metrics.json").read_text())["budget"]["reached"]


def test_a_loss_that_is_not_finite_is_an_error_that_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    cross_entropy, calls = torch.nn.functional.cross_entropy, [0]

    def broken(*args, **kwargs):
        calls[0] += 1
        return cross_entropy(*args, **kwargs) * (float("nan") if 8 < calls[0] < 14 and torch.is_grad_enabled() else 1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", broken)
    train(tmp_path / "nan", code=2)
    err = capsys.readouterr().err
    assert "the loss is nan" in err and "--resume" in err
    assert (tmp_path / "nan" / "checkpoints" / "pretrain.pt").is_file()


def test_a_damaged_checkpoint_is_named(finished, tmp_path, capsys):
    run = tmp_path / "damaged"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    (run / "checkpoints" / "pretrain.pt").write_bytes(b"PK\x03\x04 half a file")
    assert cli.main(["--resume", "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert "pretrain.pt" in error and "damaged" in error and "delete it" in error


def test_config_json_of_a_later_attempt_does_not_change_a_finished_run(finished, tmp_path, capsys):
    run = tmp_path / "moved-on"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    config |= {"grid": "paper", "mode": "quantize"}
    (run / "config.json").write_text(json.dumps(config))
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
    assert top1 == files_of(finished)[2]["finetune"]["top1"]


def test_an_edited_plan_is_refused_and_a_lost_one_made_again(finished, tmp_path, capsys):
    run = tmp_path / "edited"
    shutil.copytree(finished, run)
    plan = json.loads((run / "plan.json").read_text())
    plan["layers"][3]["clip_a"] *= 0.2
    (run / "plan.json").write_text(json.dumps(plan))
    assert cli.main(["evaluate", str(run)]) == 2
    error = capsys.readouterr().err
    assert "plan.json changed" in error and "sbs-train --resume" in error
    for name in ("plan.json", "metrics.json"):
        (run / name).unlink()
        assert cli.main(["--resume", "--out", str(run)]) == 0
        assert files_of(run) == files_of(finished)


@pytest.mark.parametrize("bits", [pytest.param(("4",), marks=SLOW), ("2", "4"), pytest.param(("8",), marks=SLOW)])
def test_candidates_without_8_bits_keep_searched_layers_to_them(tmp_path, bits):
    target = {"4": "60x", "2": "80x", "8": "16x"}[bits[0]]
    flags = ["--search.bits-weights", *bits, "--search.bits-activations", *bits, "--target", target]
    plan = load_plan(train(tmp_path / "bits", *flags, "--search.epochs", "2") / "plan.json")
    assert {row.bits_w for row in plan.layers[1:-1]} <= {int(b) for b in bits}
    assert plan.layers[0].bits_w == plan.layers[-1].bits_a == 8


@pytest.mark.slow
def test_a_short_pretraining_leaves_batchnorm_the_statistics_of_its_weights(tmp_path):
    out = tmp_path / "run"
    train(out, "--pretrain.epochs", "1", "--pretrain.steps-per-epoch", "2")
    network, _ = restore(open_run(out), "fp32")
    data = dataset_of(network.config)
    ((x_NCHW, _),) = data.train_batches(512, 0, 1)
    seen = {}
    norms = {n: m for n, m in network.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda m, x, n=name: seen.update({n: x[0].var((0, 2, 3))}))
    with torch.no_grad():
        network.model.eval()(x_NCHW)
    for name, norm in norms.items():
        ratio = (norm.running_var / seen[name]).median()
        assert 0.5 < ratio < 2, f"{name}: after two steps a moving average is four fifths of what it started from"


@pytest.mark.slow  # a training
def test_early_stopping(tmp_path, capsys, monkeypatch):
    evaluate, scores = search.evaluate, iter([50.0, 60.0, 40.0])

    def scored(ctx, model, split):
        return {"top1": next(scores), "loss": 1.0} if split == "val" else evaluate(ctx, model, split)

    monkeypatch.setattr(search, "evaluate", scored)
    run = train(tmp_path / "patient", "--search.epochs", "8", "--search.patience", "1", "--search.settle", "0.3", "0.6")
    assert load_plan(run / "plan.json").cost.reduction >= 60
    assert "stopping early" in capsys.readouterr().err
    assert len(json.loads((run / "metrics.json").read_text())["search"]["history"]) == 5


@pytest.mark.slow  # a training
def test_residual_additions_can_stay_in_float(finished, tmp_path):
    run = tmp_path / "float-adds"
    shutil.copytree(finished, run)
    assert cli.main(["--resume", "--out", str(run), "--search.no-quantize-residual"]) == 0
    assert load_plan(run / "plan.json").adds == []
