"""Opening what a user names: a run directory, a bundle, or a file; locked where it is written to."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sbs_train.contract import rundir
from sbs_train.contract.documents import require_one_run
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.trust import trusting

Run = str | os.PathLike[str] | RunDir
"""A run directory, or a file that `bundle` made of one."""
Progress = Callable[[str], None]


def open_run(run: Run, progress: Progress | None = None) -> RunDir:
    """The run at a path; a bundle is unpacked beside its file.

    >>> open_run("runs/latest").plan.name
    'plan.json'

    Raises:
        SbsError: there is no run.
    """
    if isinstance(run, RunDir):
        return run
    path = path_of(run, "run")
    if os.path.isfile(path):  # also False for an invalid path
        from sbs_deploy.bundle import open_bundle

        return open_bundle(path, progress or log_line)
    opened = rundir.open_run(path)
    require_one_run(opened)
    return opened


@contextlib.contextmanager
def writing(
    run: Run, action: str, progress: Progress | None = None, *, trust: bool = False, model: str | None = None
) -> Iterator[RunDir]:
    """Open a run, locked and with the user's trust in its code; SbsError if there is no run."""
    opened = open_run(run, progress)
    with (
        trusting(everything=trust, model=model),
        rundir.locked(opened.root, f"sbs-deploy {action}", wait=progress or log_line),
    ):
        yield opened


def path_of(value: object, name: str) -> Path:
    """A path that the user gave; SbsError for what is none."""
    if isinstance(value, RunDir) or not isinstance(value, str | os.PathLike) or value == "":
        raise SbsError(f"{name} is {value!r}; give the path of a file or a directory")
    return Path(value)


def log_line(line: str) -> None:
    """Progress where the user gave no function for it."""
    logging.getLogger("sbs_deploy").info(line)
