"""The command as users call it: processes, signals, GPUs and threads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbs_train import cli
from sbs_train.contract.errors import SbsError
from sbs_train.sweep import command
from sbs_train.sweep.command import Sweep
from tests.sbs_train.sweep.test_run import SHORT, files_of

ROOT = Path(__file__).parents[3]


def call(out, *flags):
    return subprocess.Popen(
        [sys.executable, "-m", "sbs_train.cli", "sweep", *flags, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(out):
    """Runs of a sweep that still go on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sbs_train.sweep.worker" in path.read_bytes():
                found.append(os.readlink(path.with_name("fd") / "2"))
        except OSError:
            continue
    return [name for name in found if name.startswith(str(out))]


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_and_resuming_ends_with_the_same_bytes(tmp_path):
    flags = [*SHORT, "--targets", "20x", "60x", "--jobs", "2", "--threads", "1"]
    whole = call(tmp_path / "whole", *flags, "--json")
    out, err = whole.communicate(timeout=500)
    assert whole.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == json.loads((tmp_path / "whole" / "sweep.json").read_text())

    root = tmp_path / "stopped"
    stopped = call(root, *flags)
    while not (root / "20x" / "checkpoints" / "search.pt").is_file():
        assert stopped.poll() is None
        time.sleep(0.05)
    assert processes_of(root)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "sbs-train: error: interrupted" in err.splitlines()[-1]
    assert not processes_of(root) and not (root / "sweep.json").exists()

    again = call(root, "--resume")
    _, err = again.communicate(timeout=500)
    assert again.returncode == 0 and "pretrained: up to date" in err
    assert files_of(root) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("visible", "flags", "jobs", "gpus"),
    [
        (None, {"device": "cpu"}, 1, []),
        ("", {}, 1, []),
        ("0, GPU-b", {}, 2, ["0", "GPU-b"]),
        ("0,1", {"jobs": 3}, 3, ["0", "1"]),
        ("0,1", {"device": "cpu", "jobs": 2}, 2, []),
    ],
)
def test_a_job_a_gpu_or_one_on_the_cpu(monkeypatch, visible, flags, jobs, gpus):
    monkeypatch.setattr(command, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    scheduler, threads = Sweep(targets=("20x",), **flags)._scheduler()
    assert (scheduler.jobs, scheduler.gpus, threads) == (jobs, gpus, 8 // jobs)


def test_the_threads_that_the_user_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Sweep(device="cpu")._scheduler()[1] is None
    assert Sweep(device="cpu", threads=2)._scheduler()[1] == 2


def test_it_starts_its_own_processes(monkeypatch):
    for name, value in {"RUN_ID": "x"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SbsError, match="without torchrun"):
        Sweep(device="cpu")._scheduler()


def test_a_recipe_and_a_preset_set_the_defaults():
    sweep = cli._parse_recipe(
        cli.Sweep,
        "sbs-train sweep",
        ["fashion-mnist-resnet20", "--targets", "20x", "1G", "--preset", "paper", "--jobs", "2"],
    )
    assert (sweep.data, sweep.targets, sweep.jobs, sweep.grid) == ("fashion-mnist", ("20x", "1G"), 2, "paper")
    assert cli._parse_recipe(cli.Sweep, "sbs-train sweep", ["--targets", "20x"]).data == "digits"
