"""Files, read and written safely: the one writer and the one reader of everything in a run directory.

The writer makes a file in a private directory beside the target, syncs it and renames it: a reader sees the old file or
the new one, nobody else can lay a link where it writes, and only regular files are replaced. Each private directory is
locked by the process that made it. A later writer removes the ones whose process has ended.
The reader reads bytes once, from regular files alone: what is hashed is what is parsed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.json_text import parse_json

TEMPORARY = ".sbs-"
"""Prefix of the names of private directories."""
SUFFIX = ".tmp"
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_FORGOTTEN_S = 24 * 3600.0
"""Age at which a private directory is removed on a file system that has no locks."""
_INSIDE = 4
"""Most levels of directories in a run directory."""


def is_stdout(path: Path) -> bool:
    """Whether a path stands for the standard output."""
    return str(path) in _STDOUT


def trouble(error: OSError) -> str:
    """The reason of a system error, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def manifest_path(artifact: Path) -> Path:
    """The manifest beside an artifact."""
    return artifact.with_name(artifact.name + ".manifest.json")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; the written file replaces `path` only if the block succeeds.

    Raises:
        SbsError: `path` is no regular file or lies behind a link inside a run; the directory cannot be written to, or
            the disk is full.
    """
    require_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with private_directory(path.parent) as directory:
            temporary = directory / path.name
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            require_replaceable(path)
            manifest_path(path).unlink(missing_ok=True)  # the manifest describes the old file
            temporary.replace(path)
    except OSError as error:
        raise SbsError(f"cannot write {path} ({trouble(error)}); {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    """What a user can do about a failed write, as the end of a message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space, or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "see that this user may write there, or write elsewhere"
    return "name another file"


def require_replaceable(path: Path) -> None:
    """Refuse devices, pipes, directories and links, and paths that lead out of a run through a link.

    Raises:
        SbsError: says what lies at the path.
    """
    if is_stdout(path):
        raise SbsError(f"{path} stands for standard output, which does not take this file; name a file")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SbsError(f"cannot write {path} ({trouble(error)}); {_remedy(error)}") from error
    else:
        if not stat.S_ISREG(kind):
            raise SbsError(f"cannot write {path}: it is {_kind(kind)}, not a regular file; name another file")
    inside = [path.parent, *path.parent.parents][:_INSIDE]
    root = next((at for at, above in enumerate(inside) if _is_run(above)), 0)
    for directory in inside[:root]:
        require_own_directory(directory)


def _is_run(directory: Path) -> bool:
    """Whether a directory looks like a run: config.json with checkpoints/ or plan.json."""
    return os.path.lexists(directory / "config.json") and any(
        os.path.lexists(directory / name) for name in ("checkpoints", "plan.json")
    )


def require_own_directory(directory: Path) -> None:
    """Refuse a directory of a run that is a link: files would be written elsewhere. Raises SbsError."""
    if directory.is_symlink():
        raise SbsError(f"{directory} is a link, so files would be written outside the run; put a directory there")


def _kind(mode: int) -> str:
    """The kind of a file that is not regular, in words, from its `st_mode`."""
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"))
    return next((words for test, words in kinds if test(mode)), "a device")


@contextlib.contextmanager
def private_directory(parent: Path) -> Iterator[Path]:
    """Yield a new directory below `parent` that only this user can enter; it is removed afterwards.

    Raises:
        OSError: the directory cannot be made.
    """
    sweep_directory(parent)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=SUFFIX, dir=parent))
        held = _lock(directory, wait=True)
        if held is None or is_same(directory, held):
            break  # otherwise another process removed the directory before the lock
        os.close(held)
    _HELD.update([held] if held is not None else [])
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if held is not None:
            _HELD.discard(held)
            os.close(held)


_HELD: set[int] = set()
"""Descriptors of locked private directories. A forked worker closes them, or the locks outlive a killed parent."""


def _let_go() -> None:
    """Close the locks of `_HELD`, in a process that was forked."""
    while _HELD:
        with contextlib.suppress(OSError):
            os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


def sweep_directory(directory: Path) -> None:
    """Remove the private directories of processes that have ended."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not (entry.name.startswith(TEMPORARY) and entry.name.endswith(SUFFIX)):
                continue
            if not entry.is_dir(follow_symlinks=False):
                continue
            found = Path(entry.path)
            with contextlib.suppress(OSError):
                held = _lock(found, wait=False)
                try:
                    if held is not None or time.time() - found.stat().st_mtime > _FORGOTTEN_S:
                        shutil.rmtree(found, ignore_errors=True)
                finally:
                    if held is not None:
                        os.close(held)


def _lock(directory: Path, *, wait: bool) -> int | None:
    """A descriptor that locks the directory; None where the file system has no locks.

    Raises:
        OSError: the directory is gone; or, without `wait`, another process has locked it (BlockingIOError).
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(opened)
        raise
    except OSError:
        os.close(opened)
        return None
    return opened


def is_same(path: Path, opened: int) -> bool:
    """Whether an open descriptor is the file that lies at `path` now."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; `-` and /dev/stdout stand for the standard output."""
    if is_stdout(path):
        sys.stdout.write(text)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for appending, and create it if it is missing; links are not followed.

    Raises:
        SbsError: the file cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SbsError(f"cannot write {path}: it is not a regular file; remove it")
            yield file
    except OSError as error:
        raise SbsError(f"cannot write {path} ({trouble(error)}); {_remedy(error)}") from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading `path` into SbsError.

    Raises:
        SbsError: the file is missing, cannot be read, or is not regular.
    """
    try:
        yield
    except SbsError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = trouble(error) if isinstance(error, OSError) else str(error)
        raise SbsError(f"cannot read {path} ({reason}); check its name and its permissions") from error


def read_bytes(path: Path, limit: int = bounds.FILE_BYTES) -> bytes:
    """All bytes of a regular file; SbsError if the file cannot be read, or has more than `limit` bytes."""
    with _reading(path):
        return bounds.read_regular(path, limit, "make it again")


def read_json(path: Path, sha256: str | None = None, remedy: str = "make it again") -> Any:
    """Parsed JSON; SbsError if the file is missing, damaged or too large.

    Args:
        sha256: expected hash of the file, if known.
        remedy: how to mend a changed or damaged file, as the end of the message.
    """
    content = read_bytes(path, bounds.JSON_BYTES)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise SbsError(f"{path} changed after it was made; {remedy}")
    try:
        return parse_json(content)
    except ValueError as error:
        raise SbsError(f"{path} is damaged ({error}); {remedy}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex; SbsError if the file cannot be read."""
    with _reading(path), bounds.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value as hex, such as the settings of a stage."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_file(path: Path) -> bool:
    """Whether a regular file lies at `path`; SbsError where the system refuses to tell."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            return False
        raise SbsError(f"cannot read {path} ({trouble(error)}); check its name and its permissions") from error
