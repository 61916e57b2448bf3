"""Flags of all commands. Commands import their work inside `execute`, so that `--help` is quick."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from sbs_train.contract import console, rundir
from sbs_train.contract.documents import require_one_run
from sbs_train.contract.trust import trusting

PROG = "sbs-deploy"


@dataclass(frozen=True, kw_only=True)
class Output:
    """Flags of every command."""

    json: bool = False
    """Print one JSON document as the last line of stdout."""
    verbose: bool = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Do the work; returns the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OnRun(Output):
    """Flags of every command on a run."""

    run: tyro.conf.Positional[Path] = Path("runs/latest")
    """Run directory that sbs-train made, or a file that `sbs-deploy bundle` made of one."""

    trust: bool = False
    """Allow code of the run directory to run: the Python file of its model, the host code of an engine."""

    @contextlib.contextmanager
    def writing(self, model: str | None = None) -> Iterator[rundir.RunDir]:
        """Open the run, locked and with the user's trust in its code; SbsError if there is no run."""
        run = open_run(self.run)
        owner = f"{PROG} {type(self).__name__.lower()}"
        with trusting(everything=self.trust, model=model), rundir.locked(run.root, owner, wait=console.print_progress):
            yield run


def open_run(path: Path) -> rundir.RunDir:
    """The run at a path; SbsError if there is no run. A bundle is unpacked beside its file."""
    if os.path.isfile(path):  # also False for an invalid path
        from sbs_deploy.bundle import open_bundle

        return open_bundle(path, console.print_progress)
    run = rundir.open_run(path)
    require_one_run(run)
    return run
