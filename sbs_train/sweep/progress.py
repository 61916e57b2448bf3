"""What the runs of a sweep are doing, on stderr: a line for each on a terminal, else a line for each event."""

import re
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sbs_train.sweep.scheduler import Event
from sbs_train.sweep.task import SweepTask

_EPOCH = re.compile(r"(pretrain|search|finetune) (\d+)/\d+ ")


class SweepProgress:
    """A context manager; `show` and `refresh` while the runs go on."""

    def __init__(self, tasks: Sequence[SweepTask]) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal)
        self._rows: dict[str, TaskID] = {}
        self._running: dict[str, SweepTask] = {}
        for task in tasks:
            total = max(1, sum(task.epochs.values()))
            self._rows[task.name] = self._bars.add_task(task.name, start=False, total=total, state="waits")

    def __enter__(self) -> "SweepProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """A task was started, or has ended."""
        task, row = event.task, self._rows[event.task.name]
        if not event.ended:
            self._running[task.name] = task
            self._bars.start_task(row)
            state = "starts"
        else:
            del self._running[task.name]
            self._bars.stop_task(row)
            state = f"failed: {event.failure.words}" if event.failure else "done"
            if not event.failure:
                self._bars.update(row, completed=max(1, sum(task.epochs.values())))
        self._bars.update(row, state=state.partition(":")[0])
        if self._bars.disable or event.failure:
            self.console.print(f"{task.name}: {state}", soft_wrap=True, markup=False)

    def refresh(self) -> None:
        """Read where the running tasks have got to from what they say."""
        if self._bars.disable:
            return
        for name, task in self._running.items():
            stage, epoch = where(task)
            if stage is not None:
                stages = list(task.epochs)
                before = sum(task.epochs[earlier] for earlier in stages[: stages.index(stage)])
                state = f"{stage} {epoch}/{task.epochs[stage]}"
                self._bars.update(self._rows[name], completed=before + epoch, state=state)


def where(task: SweepTask) -> tuple[str | None, int]:
    """The stage and the epoch that a task's log names last."""
    for line in reversed(task.tail()):
        match = _EPOCH.match(line)
        if match and match[1] in task.epochs:
            return match[1], int(match[2])
    return None, 0
