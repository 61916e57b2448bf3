"""What all commands take. Commands import what they do only when they do it: `--help` is quick."""

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
    """What every command takes."""

    json: bool = False
    """Print one JSON document as the last line of stdout."""
    verbose: bool = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Do the work; returns the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OnRun(Output):
    """What every command on a run takes."""

    run: tyro.conf.Positional[Path] = Path("runs/latest")
    """Run directory that sbs-train made, or a file that `sbs-deploy bundle` made of one."""

    trust: bool = False
    """Let code run that the run directory names: the Python file of its model, the host code of an engine."""

    @contextlib.contextmanager
    def writing(self, model: str | None = None) -> Iterator[rundir.RunDir]:
        """The run, held against other processes, with the user's trust; SbsError if there is none."""
        run = open_run(self.run)
        owner = f"{PROG} {type(self).__name__.lower()}"
        with trusting(everything=self.trust, model=model), rundir.locked(run.root, owner, wait=console.print_progress):
            yield run


def open_run(path: Path) -> rundir.RunDir:
    """The run at a path; SbsError if there is none. A bundle is unpacked beside itself."""
    if os.path.isfile(path):  # False, too, for what cannot be a path
        from sbs_deploy.bundle import open_bundle

        return open_bundle(path, console.print_progress)
    run = rundir.open_run(path)
    require_one_run(run)
    return run
