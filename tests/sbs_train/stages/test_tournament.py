"""The tournament at the end of a search, on a network with a bottleneck that needs all of its bits."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbs_train.contract.config import FinetuneConfig
from sbs_train.contract.plan import load_plan
from sbs_train.inputs import models
from sbs_train.quant.sensitivity import Losses, Sensitivity
from sbs_train.stages import run
from sbs_train.stages.moves import Moves
from sbs_train.stages.ranks import ALONE
from sbs_train.stages.tournament import Effort, Tournament, Trained
from sbs_train.stages.train import train as train_run
from sbs_train.tasks import load
from tests.sbs_train.stages import ranked
from tests.sbs_train.stages.test_choices import choices_at
from tests.sbs_train.stages.test_search import SETTINGS, Uneven, brightness_data


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A run of that name, with changed search settings; the metrics of its search, and its directory."""
    data = brightness_data()
    runs = tmp_path_factory.mktemp("runs")

    def train(name, **search):
        settings = dataclasses.replace(
            SETTINGS,
            weights=None if name == "whole" else runs / "whole" / "checkpoints" / "fp32.safetensors",
            search=dataclasses.replace(SETTINGS.search, epochs=2, **search),
            finetune=FinetuneConfig(epochs=0),
        )
        train_run(settings, runs / name)
        return json.loads((runs / name / "metrics.json").read_text())["search"], runs / name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "dataset_of", lambda *_: data)
        patch.setattr(run, "export_problem", lambda *_: None)
        patch.setattr(run, "training_problem", lambda *_, **__: None)
        patch.setitem(models.BUILDERS, "uneven", lambda width, channels, classes: Uneven(0.01, classes))
        yield train


@pytest.fixture(scope="module")
def whole(train):
    metrics, directory = train("whole")
    metrics["tournament"].pop("seconds")
    return metrics, directory


@pytest.fixture
def wrong(monkeypatch):
    """Estimates turned around: the search takes the bits from the layer that needs them."""
    losses = Sensitivity.losses

    def turned(self):
        found = losses(self)
        return Losses(weights_SK=found.weights_SK[::-1].copy(), inputs_SK=found.inputs_SK[::-1].copy(), blocks=[])

    monkeypatch.setattr(Sensitivity, "losses", turned)


def bits_of(directory):
    return {row.name: (row.bits_w, row.bits_a) for row in load_plan(directory / "plan.json").layers}


def test_a_simple_plan_wins_where_the_search_estimated_wrongly(train, whole, wrong):
    metrics, directory = train("with")
    table = {row["name"]: row for row in metrics["tournament"]["entrants"]}
    (winner,) = (row for row in table.values() if row["kept"])
    assert winner["name"].startswith("uniform") and winner["val_loss"] < table["search"]["val_loss"]
    assert winner["val_loss_trained"] == min(r["val_loss_trained"] for r in table.values() if r["val_loss_trained"])
    assert all(row["reduction"] >= 17 * (1 - 1e-6) for row in table.values())
    without, alone = train("without", tournament=0)
    assert "tournament" not in without and metrics["top1"] > without["top1"] + 5
    assert bits_of(alone)["expand"] != bits_of(directory)["expand"]


def test_an_interrupted_tournament_repeats_to_the_same_result(train, whole, monkeypatch):
    expected, directory = whole
    trained = [row for row in expected["tournament"]["entrants"] if row["val_loss_trained"] is not None]
    assert len(trained) <= 3 and "search" in {row["name"] for row in trained}
    with monkeypatch.context() as patch:
        patch.setattr(Tournament, "_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    found, stopped = train("stopped")
    found["tournament"].pop("seconds")
    assert found == expected
    assert (stopped / "plan.json").read_bytes() == (directory / "plan.json").read_bytes()
    assert (stopped / "weights.safetensors").read_bytes() == (directory / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_trainings_that_diverge_leave_the_best_plan_with_the_weights_of_the_search(train, whole, monkeypatch):
    def diverged(self, name, choice, before):
        found = trained(self, name, choice, before)
        state = {name: torch.full_like(value, float("nan")) for name, value in found.state.items()}
        return dataclasses.replace(found, loss=float("inf"), state=state)

    trained = Tournament._trained
    monkeypatch.setattr(Tournament, "_trained", diverged)
    metrics, _ = train("diverged")
    (winner,) = (row for row in metrics["tournament"]["entrants"] if row["kept"])
    assert winner["val_loss_trained"] is None and winner["val_loss"] == min(
        row["val_loss"] for row in metrics["tournament"]["entrants"]
    )
    assert metrics["top1"] > 80


def test_moves_are_kept_where_the_loss_falls_by_more_than_its_noise(monkeypatch):
    """Losses that are made up: one layer's weights need 8 bits, and each image has noise of its own."""
    choices = choices_at(60)
    start = choices.uniform((4, 4))
    needy = next(to.weights_S.index(8) for _, to in Moves(choices, None, 0).around(start) if 8 in to.weights_S)

    def losses(self, choice):
        self.now = choice
        noise_N = np.random.default_rng(sum(choice.weights_S + choice.inputs_S)).normal(0, 0.01, 400)
        return 1.0 - 0.1 * (choice.weights_S[needy] == 8) + torch.from_numpy(noise_N - noise_N.mean())

    monkeypatch.setattr(Tournament, "_losses", losses)
    monkeypatch.setattr(Tournament, "_val_losses", lambda self, batches: losses(self, self.now))
    monkeypatch.setattr("sbs_train.stages.tournament.reestimate_batchnorm", lambda *_: None)
    ctx = SimpleNamespace(ranks=ALONE, config=SimpleNamespace(seed=0))
    tournament = Tournament(ctx, choices, Effort(steps=1, batches=1, moves=30))
    best = Trained(name="one", choice=start, loss=1.0, state=tournament.start)
    choice, moves, tried = tournament._moved(best, None)
    assert choice.weights_S[needy] == 8 and choices.fits(choice) and tried <= 30
    assert [move.change for move in moves] == [pytest.approx(-0.1)]
    # A loss over all images that is no smaller takes the moves back.
    assert tournament._moved(dataclasses.replace(best, loss=0.5), None)[:2] == (start, [])


def test_a_change_is_the_mean_of_differences_with_its_standard_error():
    differences = np.random.default_rng(0).normal(-0.1, 1.0, 200)
    tournament = Tournament.__new__(Tournament)
    tournament.ctx = SimpleNamespace(ranks=ALONE)
    change, error = tournament._change(torch.from_numpy(differences))
    assert change == pytest.approx(differences.mean())
    assert error == pytest.approx(differences.std(ddof=1) / 200**0.5)


def test_a_short_search_has_none_and_a_long_one_spends_a_fifth():
    assert Effort.after(24) is None
    effort = Effort.after(2500)
    forwards = 2 * effort.batches * (13 + effort.moves)  # screening and moves; a training step is worth three
    assert 3 * effort.steps + forwards / 3 <= 2500 / 5


@pytest.mark.slow  # two processes under torchrun
def test_two_ranks_agree_on_the_winner(tmp_path):
    search = {"epochs": 5, "steps_per_epoch": 20, "lr": 0.05, "group_size": 2}
    result = ranked.torchrun("train", tmp_path, json.dumps({"search": search}))
    assert result.returncode == 0, result.stderr
    plans = [(tmp_path / f"plan-{rank}.json").read_text() for rank in (0, 1)]
    assert plans[0] == plans[1]
    assert len(json.loads((tmp_path / "two" / "metrics.json").read_text())["search"]["tournament"]["entrants"]) > 1
