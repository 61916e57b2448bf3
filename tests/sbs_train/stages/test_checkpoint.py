"""A checkpoint takes the place of the last one only if it can be read back; whatever breaks is one line."""

import dataclasses
import errno
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sbs_train import cli
from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.stages import checkpoint, context
from sbs_train.stages.checkpoint import Checkpoint, Position, write_checked
from sbs_train.stages.ranks import ALONE, Ranks
from tests.sbs_train.stages import ranked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(context.time, "monotonic", lambda: now.seconds)
    return now


def checkpoint_in(path, *, model=None, settings="these", minutes=15.0, ranks=ALONE):
    run = rundir.create_run(path)
    ctx = SimpleNamespace(run=run, ranks=ranks, config=TrainConfig(checkpoint_minutes=minutes))
    return Checkpoint(ctx, "search", {"model": model or nn.Linear(3, 2)}, settings)


def test_it_gives_back_what_was_saved_and_where(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    totals = {"loss": torch.tensor(2.5), "flips": torch.tensor(3.0)}
    checkpoint_in(tmp_path, model=model).save(Position(epoch=2, step=7, totals=totals))
    at = checkpoint_in(tmp_path, model=other).resume()
    assert (at.epoch, at.step, at.totals) == (2, 7, totals)
    assert torch.equal(model.weight, other.weight)


def test_it_is_for_its_settings_alone(tmp_path):
    checkpoint_in(tmp_path).save(Position(epoch=1))
    assert checkpoint_in(tmp_path, settings="others").resume() == Position()


def test_the_seconds_of_all_sessions_count(tmp_path, clock):
    first = checkpoint_in(tmp_path)
    clock.seconds += 40
    first.save(Position(epoch=1))
    clock.seconds += 1000  # after the save: lost by the kill
    second = checkpoint_in(tmp_path)
    second.resume()
    assert second.earlier_s == 40
    clock.seconds += 2
    second.save(Position(epoch=2))
    third = checkpoint_in(tmp_path)
    third.resume()
    assert third.earlier_s == 42


def test_it_is_due_after_its_minutes_on_the_rank_that_writes(tmp_path, clock):
    found = checkpoint_in(tmp_path, minutes=2)
    never, second = checkpoint_in(tmp_path, minutes=0), checkpoint_in(tmp_path, ranks=Ranks(rank=1, world=2))
    assert not found.due
    clock.seconds += 120
    assert found.due and not never.due and not second.due
    found.save(Position())
    assert not found.due


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_disk(path, content):
    with path.open("wb") as file:
        file.write(bytes(content)[:-1] + b"x")


def unreadable(path):
    raise RuntimeError("no zip archive")


@pytest.mark.parametrize(
    ("target", "broken", "error", "message"),
    [
        ("pathlib.Path.write_bytes", full_disk, SbsError, "No space left on device.*free space"),
        ("os.fsync", full_disk, SbsError, "No space left on device.*free space"),
        ("pathlib.Path.write_bytes", broken_disk, SbsError, "does not return what was written"),
        ("sbs_train.stages.checkpoint._load", unreadable, RuntimeError, "no zip archive"),
    ],
)
def test_the_last_good_one_is_kept_until_the_next_is_read_back(tmp_path, monkeypatch, target, broken, error, message):
    model = nn.Linear(3, 2)
    found = checkpoint_in(tmp_path, model=model)
    found.save(Position(epoch=1))
    before = found.path.read_bytes()
    nn.init.zeros_(model.weight)
    monkeypatch.setattr(target, broken)
    with pytest.raises(error, match=message) as caught:
        found.save(Position(epoch=2))
    assert "\n" not in str(caught.value)
    assert found.path.read_bytes() == before
    assert [path.name for path in found.path.parent.iterdir()] == ["search.pt"]


def test_weights_are_kept_the_same_way(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    write_checked(path, b"good")
    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(SbsError, match="No space left on device"):
        write_checked(path, b"better")
    assert path.read_bytes() == b"good" and [found.name for found in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_session_left_is_removed(tmp_path):
    run = rundir.create_run(tmp_path)
    for directory in (run.checkpoints / ".sbs-a.tmp", run.root / ".sbs-b.tmp"):
        directory.mkdir()
        (directory / "half").write_text("half")
    (run.checkpoints / "search.pt").write_text("whole")
    with rundir.locked(run.root, "sbs-train"):
        pass
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["search.pt"]


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_loading_never_runs_code(tmp_path, capsys):
    found = checkpoint_in(tmp_path)
    content = io.BytesIO()
    torch.save({"settings": Evil(), "epoch": 1}, content)
    found.path.write_bytes(content.getvalue() + checkpoint._seal(content.getvalue()))
    with pytest.raises(SbsError, match=r"search.pt is damaged"):
        found.resume()
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_nothing_that_is_not_a_number_is_saved(tmp_path, monkeypatch, what):
    step, calls = ranked.Descent.step, [0]

    def poisoned(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] == 14 and what == "weight":  # the loss of this step is still a number
            next(self._network.model.parameters()).data[0] = float("nan")
        return loss * float("nan") if calls[0] == 14 and what == "loss" else loss

    monkeypatch.setattr(ranked.Descent, "step", poisoned)
    found = "the loss is nan" if what == "loss" else "a weight is not finite"
    with pytest.raises(
        SbsError, match=f"pretrain: {found} in epoch 2; the last good checkpoint is kept.*--pretrain.lr"
    ):
        ranked.train(tmp_path / "run", checkpoint_minutes=1e-6)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "pretrain.pt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 3)  # the 13th of 10 + 10 steps
    assert all(value.isfinite().all() for value in saved["state"]["model"].values())
    monkeypatch.setattr(ranked.Descent, "step", step)
    assert ranked.train(tmp_path / "run").run.plan.is_file()


class Dropping(ranked.Plain):
    """Draws at random while it trains."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.2, self.training)


def test_what_a_network_draws_does_not_depend_on_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(ranked, "Plain", Dropping)
    short = {"search": dataclasses.replace(ranked.CONFIG.search, epochs=1), "checkpoint_minutes": 1e-6}
    whole = ranked.train(tmp_path / "whole", **short)
    save = Checkpoint.save

    def save_then_die(self, position):
        save(self, position)
        if (position.epoch, position.step) == (1, 4):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", save_then_die)
        ranked.train(tmp_path / "parts", **short)
    parts = ranked.train(tmp_path / "parts", **short)
    assert parts.run.weights.read_bytes() == whole.run.weights.read_bytes()
    assert parts.metrics.search == whole.metrics.search


def test_a_full_disk_during_training_is_one_line_and_loses_nothing(tmp_path, monkeypatch, capsys):
    write, left = checkpoint.write_checked, [2]

    def filling(path, content, check=None):
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
        write(path, content, check)

    monkeypatch.setattr(checkpoint, "write_checked", filling)
    flags = "--width 4 --batch-size 32 --pretrain.epochs 3 --pretrain.steps-per-epoch 2".split()
    assert cli.main([*flags, "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sbs-train: error: cannot write") and "No space left on device" in last
    saved = torch.load(tmp_path / "run" / "checkpoints" / "pretrain.pt", weights_only=True)
    assert saved["epoch"] == 2 and not list((tmp_path / "run").rglob("*.tmp"))


def test_a_changed_bit_anywhere_is_found(tmp_path):
    found = checkpoint_in(tmp_path)
    found.save(Position(epoch=1))
    whole = found.path.read_bytes()
    for at in range(0, len(whole), 7):
        found.path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(SbsError, match=r"search.pt.*damaged.*delete it"):
            found.resume()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_what_was_cut_off_is_found(tmp_path, part):
    found = checkpoint_in(tmp_path)
    found.save(Position(epoch=1))
    whole = found.path.read_bytes()
    found.path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(SbsError, match=r"search.pt.*damaged.*delete it"):
        found.resume()
