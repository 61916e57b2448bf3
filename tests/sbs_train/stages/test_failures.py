"""Failures of the machine, in the words torch has for them, become one line with a remedy."""

import errno
import os
import re
import signal

import pytest
import torch
from torch.distributed import DistBackendError

from sbs_train.contract.errors import SbsError
from sbs_train.stages.failures import with_remedies
from tests.sbs_train.stages import ranked

KNOWN = [
    (RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly"), "a data worker died .*4242.*fewer workers"),
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"),
        "a data worker died .*Killed.*--resume",
    ),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a data worker died .*reset by peer"),
    (EOFError(), "a data worker died .*EOFError"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory is full.*--accumulate"),
    (DistBackendError("NCCL communicator was aborted on rank 3"), "another process of this run ended"),
    (RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer"), "another process"),
    (OSError(errno.ENOSPC, "No space left on device", "events.out"), "the disk is full .*events.out.*free space"),
]


def fail(error):
    raise error


@pytest.mark.parametrize(("error", "message"), KNOWN)
def test_what_is_known_gets_its_remedy(error, message):
    with pytest.raises(SbsError, match=message) as caught:
        with_remedies(lambda: fail(error))
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        OSError(errno.EACCES, "Permission denied"),
        KeyError("layer"),
        SbsError("the loss is nan"),
    ],
)
def test_what_is_not_passes_through(error):
    with pytest.raises(type(error), match=re.escape(str(error))):
        with_remedies(lambda: fail(error))


class Dying:
    """Images whose reader is killed at the third."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_torch_says_so_when_a_worker_is_killed():
    with pytest.raises(SbsError, match="a data worker died .*use fewer workers"):
        with_remedies(lambda: list(torch.utils.data.DataLoader(Dying(), num_workers=1)))


def test_a_worker_that_dies_ends_the_run_with_its_checkpoint_kept(tmp_path, monkeypatch):
    step, left = ranked.Descent.step, [13]

    def starving(self, *args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise KNOWN[0][0]
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ranked.Descent, "step", starving)
    with pytest.raises(SbsError, match="a data worker died"):
        ranked.train(tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "pretrain.pt", weights_only=True)
    assert saved["epoch"] == 1
