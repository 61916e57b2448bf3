"""Worker processes: the same batches as without them, and nothing left behind when something goes wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load_dataset
from sbs_train.inputs.data.images import eval_transform
from sbs_train.inputs.data.loader import default_workers, load_batches
from sbs_train.inputs.data.samples import EvalSamples
from tests.sbs_train.inputs.pictures import Fatal, write_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"))


def opened(root, workers, **options):
    return load_dataset(f"folder:{root}", image_size=8, workers=workers, **options)


def test_workers_read_what_one_process_reads(root):
    alone, helped = opened(root, 0), opened(root, 2)
    for batches in (lambda data: data.train_batches(6, 5, 7), lambda data: data.eval_batches(data.test, 4)):
        for (x, y), (x_helped, y_helped) in zip(batches(alone), batches(helped), strict=True):
            assert torch.equal(x, x_helped) and torch.equal(y, y_helped)
    assert not multiprocessing.active_children()


def test_workers_end_with_a_loop_that_is_left_early(root):
    batches = opened(root, 2).train_batches(4, 0, 500)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_workers_say_which_image_is_bad(root):
    data = opened(root, 1)
    data.test.files.names[2] = b"ant/gon.jpeg"
    with pytest.raises(SbsError, match="val/ant/gon.jpeg cannot be read") as caught:
        list(data.eval_batches(data.test))
    assert "\n" not in str(caught.value)


def test_every_machine_gets_workers(monkeypatch):
    for cores, local, expected in ((1, 1, 1), (2, 1, 1), (12, 1, 11), (128, 1, 16), (64, 8, 7), (4, 8, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        assert default_workers() == expected


@pytest.mark.slow  # torch looks every 5 seconds whether its workers live
def test_a_worker_that_is_killed_ends_the_run_with_a_remedy():
    samples = EvalSamples(files=Fatal(labels=np.zeros(4, np.int64)), transform=eval_transform(8))
    with pytest.raises(SbsError, match=r"a data worker died .*--resume and --workers below 2") as caught:
        list(load_batches(samples, [range(2), range(2, 4)], workers=2, pin=False))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


INTERRUPTED = """
import sys
from sbs_train.contract.console import run_command
from sbs_train.inputs.data import load_dataset

def read():
    data = load_dataset("folder:" + sys.argv[1], image_size=8, workers=2)
    for step, _ in enumerate(data.train_batches(4, 0, 10**4)):
        if step == 5:
            print("reading", flush=True)

if __name__ == "__main__":
    sys.exit(run_command("test", read, verbose=False))
"""


@pytest.mark.slow  # a new interpreter imports torch twice
def test_ctrl_c_ends_the_run_and_its_workers(root, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "test: error: interrupted\n")
    deadline = time.monotonic() + 10
    while members_of(process.pid):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.05)


def members_of(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


HUNG_UP = """
import sys
from multiprocessing.connection import Client
from multiprocessing.reduction import DupFd
from multiprocessing.resource_sharer import _resource_sharer
from sbs_train.inputs.data.loader import _leave_interrupts_to_main

if sys.argv[1] == "worker":
    _leave_interrupts_to_main(0)
handed_over = DupFd(sys.stdin.fileno())
with Client(_resource_sharer._address):  # without the key: it answers the challenge with silence
    pass
handed_over.detach()  # the thread took up this call after it was done with the one before
if sys.argv[1] == "worker":
    sys.excepthook(OSError, OSError("too many open files"), None)
"""


def test_a_worker_whose_main_process_hangs_up_says_nothing(tmp_path):
    script = tmp_path / "hang_up.py"
    script.write_text(HUNG_UP)
    said = {
        who: subprocess.run(
            [sys.executable, str(script), who],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        ).stderr
        for who in ("anyone", "worker")
    }
    assert "in _serve" in said["anyone"]  # what Python prints otherwise
    assert said["worker"] == "OSError: too many open files\n"
