"""Flags of all commands. Commands import their work inside `execute`, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path

import tyro

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
    """Allow code of the run directory to run: the Python files of its model and task, the host code of
    an engine."""
