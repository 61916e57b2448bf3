"""Schedulers of a sweep's runs: the protocol, and its implementation with processes of this machine."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sbs_train.sweep.task import Failure, SweepTask, start, stop

TICK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Event:
    """A task has started or ended."""

    task: SweepTask
    ended: bool
    failure: Failure | None = None
    """Why the task failed; None if it started, or ended well."""


class Scheduler(Protocol):
    """Runs tasks, several at a time."""

    def run(self, tasks: Sequence[SweepTask]) -> Generator[Event | None, None, None]:
        """Run all tasks; yields an event for each start and end, and None now and then in between.

        Closing the iterator, or an exception in it such as KeyboardInterrupt, ends all running tasks.
        """


class LocalScheduler:
    """Runs tasks as processes of this machine."""

    def __init__(self, jobs: int, gpus: Sequence[str] = ()) -> None:
        """
        Args:
            jobs: most tasks at the same time.
            gpus: GPUs as in CUDA_VISIBLE_DEVICES, one per job; if empty, each job sees the devices of this process.
        """
        self.jobs, self.gpus = jobs, gpus

    def run(self, tasks: Sequence[SweepTask]) -> Generator[Event | None, None, None]:
        waiting = deque(tasks)
        running: dict[int, tuple[SweepTask, subprocess.Popen[bytes]]] = {}
        try:
            while waiting or running:
                for slot in range(self.jobs):
                    if waiting and slot not in running:
                        task = waiting.popleft()
                        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
                        running[slot] = task, start(task, gpu)
                        yield Event(task=task, ended=False)
                for slot, (task, process) in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[slot]
                        stop([process])
                        yield Event(task=task, ended=True, failure=task.failure(code))
                yield None
                if len(running) == self.jobs or not waiting:
                    time.sleep(TICK_S)
        finally:
            stop([process for _, process in running.values()])


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
