"""One run of a sweep, in a process of its own.

The process reads its task from the first line of its standard input and ends when the input is closed, so no run
outlives the sweep that started it. Its output goes to a log file in the run directory.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbs_train.contract import rundir

GRACE_S = 10.0
"""Seconds that an interrupted run may take to end."""
_ERROR = re.compile(r"sbs-train: error: (.*)")
_TAIL_BYTES = 1 << 13


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run failed."""

    words: str
    """The reason, in one line."""
    code: int = 1
    """Exit code of the process; 2 means refused input."""


@dataclass(frozen=True, kw_only=True)
class SweepTask:
    """A run to start or to resume."""

    name: str
    out: Path
    """Run directory, absolute."""
    config: dict[str, Any]
    """The `TrainConfig` as JSON."""
    first_stage: bool
    """Whether to run pretraining only."""
    epochs: dict[str, int]
    """Epochs of each stage of the run."""
    threads: int | None
    """Threads of torch; None leaves them to the environment."""
    cwd: Path = field(default_factory=Path.cwd)
    """Base of relative paths."""
    arguments: tuple[str, ...] = ("-m", "sbs_train.sweep.worker")
    """Arguments of the Python interpreter."""

    @property
    def log(self) -> Path:
        """Log file of all sessions of the run."""
        return self.out / "train.log"

    def tail(self) -> list[str]:
        """The last lines of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return file.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def failure(self, code: int) -> Failure | None:
        """The failure for the exit code of the process; None for success."""
        last = next((line.strip() for line in reversed(self.tail()) if line.strip()), "it said nothing")
        told = _ERROR.fullmatch(last)
        if code == -signal.SIGKILL:
            words = f"killed, probably for want of memory; see {self.log}"
        elif code < 0:
            words = f"ended by signal {-code}; see {self.log}"
        else:
            words = told[1] if told else f"exit code {code}: {last}; see {self.log}"
        return Failure(words=words, code=code) if code else None


def start(task: SweepTask, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a task's process, in a session of its own, so that Ctrl-C at the terminal reaches only the sweep."""
    # Safe path: a file of the user's directory must not replace a module.
    own = {"PYTHONSAFEPATH": "1"} | ({"OMP_NUM_THREADS": str(task.threads)} if task.threads else {})
    with rundir.appending(task.log) as log:
        process = subprocess.Popen(
            [sys.executable, *task.arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=task.cwd,
            env={**os.environ, **own, **environment},
            start_new_session=True,
        )
    assert process.stdin is not None
    order = {"out": str(task.out), "config": task.config, "first_stage": task.first_stage}
    with contextlib.suppress(BrokenPipeError):  # the process died at once; its exit code says why
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Interrupt processes, and kill those that still run after `GRACE_S`, or at a second Ctrl-C."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    end = time.monotonic() + GRACE_S
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
