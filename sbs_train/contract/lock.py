"""One writer a directory: a run that trains, or is deployed, is held by one process.

The lock is the system's (it ends with the process, however that ends) on the file `.lock`, which says who holds it.
Where the file system has no locks, the file `.lock.held` stands for one.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sbs_train.contract.errors import SbsError
from sbs_train.contract.files import TEMPORARY, is_same, require_own_directory, sweep_directory, trouble

LOCK = ".lock"
LATEST = "latest"
"""Name of the only allowed link: in the directory of a sweep, it leads to the best run."""
_MARKER = ".lock.held"
_POLL_S = 0.2
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_TAKEN = (errno.EAGAIN, errno.EACCES)
_LEVELS = 3
"""Levels of directories below a run that hold files of SBS."""

_held: dict[str, int] = {}
"""How often this process holds each directory's lock: the system does not count holders inside a process."""


@contextlib.contextmanager
def locked(root: Path, owner: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Lock the existing directory `root`, and remove unfinished files of killed processes.

    A directory without write permission needs no lock.

    Args:
        owner: the command that takes the lock, as others shall read it.
        wait: called once with the holder's name, then `locked` waits. Without `wait`, and while the holder trains,
            `locked` raises.

    Raises:
        SbsError: another process holds it.
    """
    key = os.path.realpath(root)
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
        return
    descriptor = _taken(root, owner, wait)
    _held[key] = 1
    try:
        if descriptor is not None:
            sweep(root)
        yield
    finally:
        del _held[key]
        if descriptor is not None:
            with contextlib.suppress(OSError):
                (root / LOCK).unlink()
            os.close(descriptor)
            if _is_ours(root / _MARKER):
                with contextlib.suppress(OSError):
                    (root / _MARKER).unlink()


def sweep(root: Path) -> None:
    """Remove unfinished files below a directory that this process holds; SbsError if a directory in it is a link."""
    for directory, inner, _ in os.walk(root):
        depth = len(Path(directory).relative_to(root).parts)
        sweep_directory(Path(directory))
        for name in inner:
            if name != LATEST:
                require_own_directory(Path(directory) / name)
        inner[:] = [name for name in inner if depth < _LEVELS and not name.startswith(TEMPORARY)]


def _taken(root: Path, owner: str, wait: Callable[[str], None] | None) -> int | None:
    """The descriptor that holds the lock of `root`; None where nobody can write. Arguments and errors: see `locked`."""
    path, told = root / LOCK, False
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno in _READ_ONLY:
                return None
            raise SbsError(f"cannot lock {path} ({trouble(error)}); remove it, or choose another --out") from error
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            holder = _hold(descriptor, root) if regular else None
            ours = holder is None and is_same(path, descriptor)
        except OSError as error:
            os.close(descriptor)
            raise SbsError(f"cannot lock {path} ({trouble(error)}); choose another --out") from error
        if not regular:
            os.close(descriptor)
            raise SbsError(f"cannot lock {path}: it is not a regular file; remove it")
        if ours:
            _sign(descriptor, owner)
            return descriptor
        os.close(descriptor)
        if holder is None:
            continue  # the last holder removed the file in between
        if wait is None or holder.get("owner") == "sbs-train":
            raise SbsError(f"{root} is in use by {_in_words(holder)}; wait until that ends, or choose another --out")
        if not told:
            wait(f"{root} is in use by {_in_words(holder)}; waiting")
            told = True
        time.sleep(_POLL_S)


def _hold(descriptor: int, root: Path) -> dict[str, Any] | None:
    """Take the lock on an open `.lock` of `root`; None on success, or the record of the process that holds the lock."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return _who(descriptor)
        if error.errno not in _NO_LOCKS:
            raise
        return _hold_marker(root / _MARKER)
    return None


def _hold_marker(marker: Path) -> dict[str, Any] | None:
    """Make the file that stands for a lock; None on success, or the record of the process that made the file."""
    for _ in range(2):
        try:
            made = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            with contextlib.suppress(OSError):
                opened = os.open(marker, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    holder = _who(opened)
                finally:
                    os.close(opened)
                if not _has_ended(holder):
                    return {**holder, "marker": str(marker)}
                marker.unlink()
            continue
        _sign(made, "sbs")
        os.close(made)
        return None
    return {"marker": str(marker)}


def _sign(descriptor: int, owner: str) -> None:
    """Write into a lock who holds it: command, host, process, since when (seconds of the epoch)."""
    value = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a holder's name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(value).encode(), 0)


def _who(descriptor: int) -> dict[str, Any]:
    """The holder that `_sign` wrote; empty where the file is damaged."""
    try:
        value = json.loads(os.pread(descriptor, 1 << 12, 0))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_ours(marker: Path) -> bool:
    """Whether this process made the file that stands for a lock."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(marker.read_bytes())
        return bool(value["pid"] == os.getpid() and value["host"] == socket.gethostname())
    return False


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0 or holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _in_words(holder: dict[str, Any]) -> str:
    """The holder of a lock, for a message."""
    words = f"{holder.get('owner', 'another process')}"
    if "pid" in holder:
        words += f", process {holder['pid']} on {holder.get('host', 'an unknown machine')}"
    since = holder.get("since")
    if isinstance(since, int | float):
        minutes = max(0.0, time.time() - since) / 60
        words += f", for {minutes:.0f} min" if minutes < 120 else f", for {minutes / 60:.0f} h"
    if "marker" in holder:
        words += f" (if it has ended, remove {holder['marker']})"
    return words
