"""Whole sweeps over real digits, small and short: what they leave, what they share, and that they go on."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from sbs_train import cli
from sbs_train.contract.device import save_device
from sbs_train.contract.plan import load_plan
from sbs_train.contract.sweep import SweepResult, SweepRun
from sbs_train.stages import loop
from sbs_train.stages.descent import Descent
from sbs_train.sweep import command
from sbs_train.sweep.run import best_of, judged
from tests.sbs_train.devices import device_for
from tests.sbs_train.small import small_network
from tests.sbs_train.sweep.tasks import Inside

SHORT = (
    "--width 4 --batch-size 32 --device cpu --calibrate.batches 1 --search.group-size 2 "
    "--pretrain.epochs 1 --pretrain.steps-per-epoch 4 --search.epochs 2 --search.steps-per-epoch 4 "
    "--finetune.epochs 1 --finetune.steps-per-epoch 4"
).split()


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    """Sweeps run without processes; the last scheduler that was made is `made[-1]`."""
    made = []
    monkeypatch.setattr(command, "LocalScheduler", lambda jobs, gpus: made.append(Inside()) or made[-1])
    return made


def sweep(out, *flags, code=0):
    assert cli.main(["sweep", *flags, "--out", str(out)]) == code
    return out


def sweep_in(root: Path):
    """What sweep.json of a sweep says."""
    return SweepResult.model_validate_json((root / "sweep.json").read_text())


def made_by(inside):
    """The runs that the last sweep made: pretraining first, if it had to."""
    return inside[-1].names


def files_of(root: Path):
    """What resuming must not change."""
    found = {}
    for path in [*sorted(root.glob("*/*")), root / "sweep.json"]:
        if path.name in ("plan.json", "weights.safetensors", "sweep.json") and path.parent.name != "latest":
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "LocalScheduler", lambda jobs, gpus: Inside())
    try:
        return sweep(tmp_path_factory.mktemp("runs") / "front", *SHORT, "--targets", "20x", "100 x")
    finally:
        patch.undo()


def test_every_target_is_an_ordinary_run(finished, capsys):
    for name, low in (("20x", 20), ("100x", 100)):
        run = finished / name
        assert low <= load_plan(run / "plan.json").cost.reduction <= low * 1.05
        config = json.loads((run / "config.json").read_text())
        assert config["target"] == name and config["weights"].endswith("fp32.safetensors")
        assert cli.main(["evaluate", str(run), "--json"]) == 0
        top1 = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
        assert top1 == next(row.score for row in sweep_in(finished).runs if row.run == name)


def test_all_start_from_the_same_weights_and_calibration(finished):
    runs = [finished / name for name in ("20x", "100x")]
    for file in ("fp32.safetensors", "calibration.json"):
        assert len({(run / "checkpoints" / file).read_bytes() for run in runs}) == 1
    fp32 = [json.loads((run / "metrics.json").read_text())["fp32"] for run in [*runs, finished / "pretrained"]]
    assert fp32[0] == fp32[1] == fp32[2]
    assert fp32[0]["top1"] == sweep_in(finished).score_fp32
    assert not (finished / "pretrained" / "plan.json").exists(), "the first stage alone"


def test_what_a_sweep_leaves(finished):
    result = sweep_in(finished)
    assert [(row.target, row.run, row.reached) for row in result.runs] == [
        ("20x", "20x", True),
        ("100x", "100x", True),
    ]
    assert any(row.on_front for row in result.runs) and not any(row.knee for row in result.runs)
    best = max(result.runs, key=lambda row: (row.score, -row.bops)).run
    assert os.readlink(finished / "latest") == best
    assert os.readlink(finished.parent / "latest") == f"front/{best}"
    page = (finished / "sweep.html").read_text()
    assert "Plotly.newPlot" in page and '<a href="100x/">' in page and 'src="http' not in page
    assert not list(finished.rglob("*.tmp"))


def test_a_finished_sweep_makes_nothing_again(finished, inside, capsys):
    before = files_of(finished)
    sweep(finished, "--resume", "--json")
    out, err = capsys.readouterr()
    assert made_by(inside) == [] and files_of(finished) == before and "20x: up to date" in err
    assert json.loads(out.splitlines()[-1]) == json.loads(before["sweep.json"])


@pytest.mark.slow
def test_a_resumed_sweep_takes_new_targets_and_settings_and_keeps_the_rest(finished, tmp_path, inside):
    root = tmp_path / "front"
    shutil.copytree(finished, root, symlinks=True)
    sweep(root, "--resume", "--targets", "20x", "60x", "100x")
    assert made_by(inside) == ["60x"], "the weights' path may change, their content not"
    assert [row.run for row in sweep_in(root).runs] == ["20x", "60x", "100x"]
    sweep(root, "--resume", "--finetune.lr", "0.001")
    assert made_by(inside) == ["pretrained", "20x", "60x", "100x"]
    assert (root / "60x" / "plan.json").read_bytes() != (finished / "100x" / "plan.json").read_bytes()
    (root / "20x" / "plan.json").unlink()
    sweep(root, "--resume")
    assert made_by(inside) == ["20x"] and (root / "20x" / "plan.json").is_file()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_result(finished, tmp_path, inside, capsys, monkeypatch):
    step, left = Descent.step, [0]

    def interrupted(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Descent, "step", interrupted)
    root = tmp_path / "front"
    # In pretraining; then in the first run's search; then in the second run's fine-tuning.
    for flags, steps in (([*SHORT, "--targets", "20x", "100 x"], 3), (["--resume"], 4 + 7), (["--resume"], 2 + 4 + 10)):
        left[0] = steps
        sweep(root, *flags, code=130)
        assert not (root / "sweep.json").exists() and "sbs-train sweep --resume --out" in capsys.readouterr().err
    left[0] = -1
    sweep(root, "--resume")
    assert made_by(inside) == ["100x"]
    assert files_of(root) == files_of(finished)


@pytest.mark.slow
def test_a_target_that_fails_or_is_out_of_reach_is_a_row(tmp_path, capsys, monkeypatch):
    cross_entropy = torch.nn.functional.cross_entropy
    fit, stage = loop.fit, [""]

    def broken(*args, **kwargs):
        return cross_entropy(*args, **kwargs) * (float("nan") if stage[0] == "sick" else 1)

    def watched(ctx, name, *args, **kwargs):
        stage[0] = "sick" if ctx.config.target == "40x" else ""
        try:
            return fit(ctx, name, *args, **kwargs)
        finally:
            stage[0] = ""

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", broken)
    monkeypatch.setattr("sbs_train.stages.search.fit", watched)
    root = sweep(tmp_path / "front", *SHORT, "--targets", "40x", "60x", "5000x", "99T", "--json", code=1)
    out, err = capsys.readouterr()
    rows = {row["target"]: row for row in json.loads(out.splitlines()[-1])["runs"]}
    assert "the loss is nan" in rows["40x"]["error"] and not rows["40x"]["reached"]
    assert "of the FP32 cost" in rows["99T"]["error"]
    assert rows["60x"]["reached"] and rows["60x"]["on_front"]
    assert rows["5000x"]["error"] is None and not rows["5000x"]["reached"] and rows["5000x"]["reduction"] < 500
    assert "3 of 4 targets were not reached" in err.splitlines()[-1]
    assert "the loss is nan" in (root / "sweep.html").read_text()
    assert os.readlink(root / "latest") == "60x"


@pytest.mark.slow
def test_a_sweep_over_latencies(tmp_path, capsys):
    device = tmp_path / "device.json"
    model = device_for(small_network(width=4, size=16))
    save_device(model, device)
    dense_ms = model.networks[0].quantized_ms
    targets = [f"{0.8 * dense_ms:.6f}ms", "3.1x"]
    flags = ["--cost", str(device), "--targets", *targets]
    root = sweep(tmp_path / "front", *SHORT, *flags)
    result = sweep_in(root)
    assert result.unit == "ms" and [row.reached for row in result.runs] == [True, True]
    assert result.runs[0].expected_ms <= 0.8 * dense_ms * (1 + 1e-6) and result.runs[1].reduction >= 3.1
    assert json.loads((root / "3.1x" / "config.json").read_text())["search"]["align"] == "auto"
    out, _ = capsys.readouterr()
    assert "expected ms" in " ".join(out.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--targets 20x 40x 66x 100x"),
        ("--targets 20x 20.0x", "the same target"),
        ("--targets 20x banana", "not a reduction"),
        ("--targets 20x --target 30x", "--target"),
        ("--targets 20x --jobs 0", "--jobs 0 must be above 0"),
        ("--targets 20x --model resnet21", "unknown model resnet21"),
        ("--targets 20x --data mnist", "unknown data set mnist"),
        ("--targets 20x --weights /nowhere/w.safetensors", "cannot read /nowhere/w.safetensors"),
        ("--targets 2x --cost /nowhere/device.json", "cannot read /nowhere/device.json"),
        ("--targets 20x --scheduler slurm", "--scheduler"),
        ("--resume", "no sweep at"),
        ("mnist-resnet --targets 20x", "unknown recipe or command mnist-resnet"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2_and_leaves_nothing(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    sweep("front", *flags.split(), code=2)
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("pretrained: ")]
    assert out == "" and len(said) == 1 and words in said[0] and said[0].startswith("sbs-train: error: ")
    assert not list(tmp_path.iterdir())


def test_resuming_without_a_directory(capsys):
    assert cli.main(["sweep", "--resume"]) == 2
    assert "give it with --out" in capsys.readouterr().err


def test_a_sweep_is_not_overwritten_and_bad_input_does_not_change_its_settings(finished, capsys):
    before = {**files_of(finished), "settings": (finished / "settings.json").read_bytes()}
    sweep(finished, *SHORT, "--targets", "20x", code=2)
    assert "already holds a sweep; go on with it by --resume" in capsys.readouterr().err
    sweep(finished, "--resume", "--data", "mnist", code=2)
    assert before == {**files_of(finished), "settings": (finished / "settings.json").read_bytes()}


def row(name, cost, top1, **changes):
    return SweepRun(target=name, run=name, reached=True, reduction=1e9 / cost, bops=cost, score=top1, **changes)


def test_the_front_leaves_failures_out_and_the_best_run_is_the_knee():
    rows = judged(
        [
            row("100x", 1e6, 80.0),
            SweepRun(target="80x", run="80x", error="failed"),
            row("50x", 1e7, 90.0),
            row("40x", 2e7, 85.0),
            row("10x", 1e8, 91.0),
        ]
    )
    assert [one.on_front for one in rows] == [True, False, True, False, True]
    assert [one.run for one in rows if one.knee] == ["50x"] and best_of(rows).run == "50x"
    assert best_of(judged(rows[:2])).run == "100x" and best_of(judged(rows[1:2])) is None


def test_without_a_knee_the_best_run_is_the_most_accurate_that_reached_its_target():
    missed = row("5000x", 1e5, 95.0).model_copy(update={"reached": False})
    assert best_of([row("100x", 1e6, 80.0), row("10x", 1e8, 81.0), missed]).run == "10x"
