"""Progress of the runs of a sweep on stderr: a line per run on a terminal, else a line per event."""

import re
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sbs_train.sweep.scheduler import Event
from sbs_train.sweep.task import SweepTask

_EPOCH = re.compile(r"(pretrain|search|finetune) (\d+)/\d+ ")


class SweepProgress:
    """A context manager that shows progress; call `show` for every event, and `refresh` in between."""

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
        """Show that a task has started or ended."""
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
        """Update stage and epoch of all running tasks from their logs."""
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
    """The last stage and epoch that a task's log names; (None, 0) if the log names none."""
    for line in reversed(task.tail()):
        match = _EPOCH.match(line)
        if match and match[1] in task.epochs:
            return match[1], int(match[2])
    return None, 0
