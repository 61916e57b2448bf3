"""Tasks that do next to nothing, and a scheduler that trains within the test's own process."""

import dataclasses

from sbs_train.contract.errors import SbsError
from sbs_train.sweep.scheduler import Event
from sbs_train.sweep.task import Failure, SweepTask
from sbs_train.sweep.worker import work

READ = (
    "import json, os, signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "order = json.loads(sys.stdin.readline()); "
)
"""As the worker begins."""


def script(tmp_path, name, code, **changes):
    """A task whose process reads its order and then runs `code`."""
    task = SweepTask(
        name=name,
        out=tmp_path / name,
        config={"target": name},
        first_stage=False,
        epochs={"search": 4, "finetune": 2},
        threads=1,
        cwd=tmp_path,
        arguments=("-c", READ + code),
    )
    return dataclasses.replace(task, **changes)


class Inside:
    """Runs one after the other, without processes."""

    def __init__(self):
        self.names = []

    def run(self, tasks):
        for task in tasks:
            self.names.append(task.name)
            task.out.mkdir(parents=True, exist_ok=True)
            task.log.touch()
            yield Event(task=task, ended=False)
            yield None
            failure = None
            try:
                work({"out": str(task.out), "config": task.config, "first_stage": task.first_stage})
            except SbsError as error:
                failure = Failure(words=str(error), code=error.exit_code)
            yield Event(task=task, ended=True, failure=failure)
