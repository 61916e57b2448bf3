"""Kill -9, at any moment of any stage: a resumed run ends with the bytes of one that was not interrupted."""

import random
import signal
import time

import pytest

from sbs_train.contract.rundir import read_json
from tests.sbs_train.stages.killed import Point, session, start_session

EVERY_STEP = ("--checkpoint-minutes", "1e-6")
CHAIN = [  # in every stage: within an epoch, while a checkpoint is written, and between two files that belong together
    Point("step", "pretrain", 3),
    Point("half", "pretrain.pt", 4),
    Point("replaced", "calibration.json"),
    Point("step", "search", 7),
    Point("written", "search.pt", 5),
    Point("replaced", "search.plan.json"),
    Point("step", "finetune", 2),
    Point("written", "weights.safetensors.manifest.json"),
]
MORE = [
    Point("step", "pretrain", 1),
    Point("replaced", "pretrain.pt", 3),
    Point("half", "fp32.safetensors"),
    Point("replaced", "metrics.json"),
    Point("step", "search", 1),
    Point("replaced", "search.pt", 4),
    Point("half", "search.safetensors"),
    Point("written", "search.safetensors.manifest.json"),
    Point("half", "finetune.pt", 6),
    Point("replaced", "plan.json"),
]


def files_of(run):
    metrics = read_json(run / "metrics.json")
    seconds = metrics.pop("seconds")
    assert set(seconds) == {"fp32", "search", "finetune"}
    names = ("plan.json", "weights.safetensors", "checkpoints/search.plan.json", "checkpoints/fp32.safetensors")
    return metrics, [(run / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    assert session(run) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("points", [CHAIN, MORE])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_was_not(finished, tmp_path, points):
    run = tmp_path / "killed"
    for point in points:
        resume = (run / "config.json").is_file()
        assert session(run, *EVERY_STEP, kill=point, resume=resume) == -signal.SIGKILL, point
    assert session(run, resume=True) == 0
    assert files_of(run) == files_of(finished)
    assert not list(run.rglob("*.tmp"))  # what the killed sessions left behind


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_events(finished, tmp_path, seed):
    draw, run, kills, code = random.Random(seed), tmp_path / "killed", 0, -signal.SIGKILL
    while code:
        assert code == -signal.SIGKILL
        point = Point("any", count=draw.randint(1, 60))
        code = session(run, *EVERY_STEP, kill=point, resume=(run / "config.json").is_file())
        kills += code != 0
    assert kills >= 3 and files_of(run) == files_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_times(finished, tmp_path, seed):
    draw, run = random.Random(seed), tmp_path / "killed"
    for _ in range(8):
        resume = (run / "config.json").is_file()
        process = start_session(run, *EVERY_STEP, resume=resume)
        while process.is_alive() and not (run / "config.json").is_file():
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 6.0))
        process.kill()
        process.join()
    assert session(run, resume=True) == 0
    assert files_of(run) == files_of(finished)
