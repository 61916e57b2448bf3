"""Failures of the machine during a long run, as one line with a remedy."""

import errno
import re
import signal
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.distributed import DistError

from sbs_train.contract.errors import SbsError

T = TypeVar("T")

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid\D*\d+[^)]*\) (exited unexpectedly|is killed by signal)")
_LOST_PEER = re.compile(r"gloo|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)
_GO_ON = "the last good checkpoint is kept: go on with --resume"


def with_remedies(work: Callable[[], T]) -> T:
    """Return `work()`; failures of the machine become SbsError, all other exceptions pass.

    Raises:
        SbsError: a data worker or another rank died, or memory or the disk is full.
    """
    try:
        return work()
    except (RuntimeError, OSError, EOFError) as error:
        # Torch also reports a dead worker from a signal handler, which raises at any point of the program:
        # here at the latest, in the first of these calls.
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        remedy = _remedy(error)
        if remedy is None:
            raise
        raise SbsError(remedy) from error


def _remedy(error: Exception) -> str | None:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or error.strerror}); free space; {_GO_ON}"
    # While a worker hands over a batch, its death looks like a connection that breaks.
    if isinstance(error, ConnectionError | EOFError) or _DEAD_WORKER.search(text):
        return f"a data worker died ({_first_line(text)}); it probably ran out of memory: use fewer workers; {_GO_ON}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full; split every batch with --accumulate, or take more GPUs; {_GO_ON}"
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and _LOST_PEER.search(text)):
        return f"another process of this run ended ({_first_line(text)}); its own message says why; {_GO_ON}"
    return None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:120]
