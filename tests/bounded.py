"""Runs a call in a child with limits on memory and time, and says how it ended."""

import os
import resource
import signal
from pathlib import Path

from sbs_train.contract.errors import SbsError

MEMORY = 2 << 30
SECONDS = 20


def bounded(call, *arguments, memory=MEMORY, seconds=SECONDS):
    """ "refused: MESSAGE" for an SbsError, "returned: VALUE", "raised: ERROR", or "killed: SIGNAL" after the time.

    `memory` is what the child may have above what this process has.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(call, arguments, memory, seconds, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said or f"killed: {signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status}"


def _run(call, arguments, memory, seconds, writer):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        said = f"returned: {call(*arguments)!r:.500}"
    except SbsError as error:
        said = f"refused: {error}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test is told
        said = f"raised: {type(error).__name__}: {error}"
    os.write(writer, said.encode(errors="replace")[:4000])
    os._exit(0)
