"""Which code of a run directory may run here: none, unless the user allows it.

A run may come from elsewhere. Its config.json can name a Python file with the network, and a TensorRT engine can bring
host code. Both run only if the user named that model on this command line, or said `--trust`.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class _Trust:
    everything: bool = False
    model: str | None = None
    """The model that the user named on this command line."""


_NOTHING = _Trust()
_now: ContextVar[_Trust] = ContextVar("trust", default=_NOTHING)


@contextlib.contextmanager
def trusting(*, everything: bool = False, model: str | None = None) -> Iterator[None]:
    """Within the block, allow all code that runs name (`everything`), or one `model`, `path/to/file.py:factory`."""
    token = _now.set(_Trust(everything=everything, model=model))
    try:
        yield
    finally:
        _now.reset(token)


def is_code(model: str) -> bool:
    """Whether a model's name stands for a function in a Python file."""
    return ".py:" in model


def absolute_model(model: str) -> str:
    """A model's name that means the same in every directory: the run is exported from elsewhere."""
    file, _, function = model.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else model


def require_model(model: str, named_in: Path) -> None:
    """Refuse the code that a run names unless the user trusts it.

    Raises:
        SbsError: the user did not allow the file, or named another model; the message says how to allow it.
    """
    trust = _now.get()
    if trust.model is not None and absolute_model(trust.model) != absolute_model(model):
        raise SbsError(f"{named_in} was made with --model {model}, not {trust.model}; leave --model out, or name that")
    if not is_code(model) or trust.everything or trust.model is not None:
        return
    raise SbsError(
        f"{named_in} names {model.rpartition(':')[0]}, which would run on this machine; if you trust that file, say "
        f"--trust, or name it: --model {model}"
    )


def require_host_code(engine: Path) -> None:
    """Refuse an engine that brings code for this machine's processor unless the user trusts it."""
    if not _now.get().everything:
        raise SbsError(
            f"{engine} was built with --version-compatible, so it brings code that would run on this machine; if you "
            f"trust that file, say so with --trust, or build it again without"
        )
