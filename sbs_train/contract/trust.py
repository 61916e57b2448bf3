"""Which code of a run directory may run here: none, unless the user allows it.

A run may come from elsewhere. Its config.json can name Python files with the network and the task, and a TensorRT
engine can bring host code. They run only if the user named that model or task on this command line, or said `--trust`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class _Trust:
    everything: bool = False
    named: Mapping[str, str | None] = field(default_factory=dict)
    """The `model` and the `task` that the user named on this command line."""


_NOTHING = _Trust()
_now: ContextVar[_Trust] = ContextVar("trust", default=_NOTHING)


@contextlib.contextmanager
def trusting(*, everything: bool = False, model: str | None = None, task: str | None = None) -> Iterator[None]:
    """Within the block, allow all code that runs name (`everything`), or one `model` and `task`, `file.py:factory`."""
    token = _now.set(_Trust(everything=everything, named={"model": model, "task": task}))
    try:
        yield
    finally:
        _now.reset(token)


def is_code(name: str) -> bool:
    """Whether the name of a model or a task stands for a function in a Python file."""
    return ".py:" in name


def absolute_name(name: str) -> str:
    """A name of a model or a task that means the same in every directory: the run is exported from elsewhere."""
    file, _, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else name


def require_model(model: str, named_in: Path) -> None:
    """Refuse the model's code that a run names unless the user trusts it; raises SbsError."""
    _require("model", model, named_in)


def require_task(task: str, named_in: Path) -> None:
    """Refuse the task's code that a run names unless the user trusts it; raises SbsError."""
    _require("task", task, named_in)


def _require(kind: str, name: str, named_in: Path) -> None:
    """Refuse code that a run names unless the user trusts it.

    Raises:
        SbsError: the user did not allow the file, or named another; the message says how to allow it.
    """
    trust = _now.get()
    named = trust.named.get(kind)
    if named is not None and absolute_name(named) != absolute_name(name):
        raise SbsError(f"{named_in} was made with --{kind} {name}, not {named}; leave --{kind} out, or name that")
    if not is_code(name) or trust.everything or named is not None:
        return
    by_name = f"name it: --{kind} {name}" if kind == "model" else f"to sbs-train --{kind} {name}"
    raise SbsError(
        f"{named_in} names {name.rpartition(':')[0]}, which would run on this machine; if you trust that file, say "
        f"--trust, or {by_name}"
    )


def require_host_code(engine: Path) -> None:
    """Refuse an engine that brings code for this machine's processor unless the user trusts it."""
    if not _now.get().everything:
        raise SbsError(
            f"{engine} was built with --version-compatible, so it brings code that would run on this machine; if you "
            f"trust that file, say so with --trust, or build it again without"
        )
