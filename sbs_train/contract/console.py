"""Shared by both command lines: exit codes, one-line errors, JSON on the last line.

    0 success · 1 a failed gate, or stdout does not take what is printed · 2 bad input · 130 interrupted
    141 the reader of stdout has gone

Results go to stdout: a table, then with --json one document as the last line. Progress goes to stderr; a closed stderr
stops no work.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO, TypeVar, cast

from sbs_train.contract.errors import SbsError

INTERRUPTED = 130
READER_GONE = 141
LONGEST = 2000
"""Most characters of an error message."""
EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchvision", "lightning_fabric", "torch_pruning", "safetensors", "tensorboard", "sklearn"), "train"
    ),
    "PIL": "train",
    "webdataset": "train",
    "onnxscript": "train",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "ray": "ray",
}
"""The pip extra that installs a module, by module name."""

T = TypeVar("T")

_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.ENOMEM)


class UnreadStream:
    """A stream that drops text silently when its reader has gone, its disk is full or it was closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115, as long as the process

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its buffer."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of the stream."""
        return getattr(self._stream, name)


class ReadStream(UnreadStream):
    """Standard output: a failed write is an error, unless the reader (`| head`) has closed its end."""

    def _lose(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        _discard(self._stream)
        raise SbsError(
            f"cannot write to standard output ({error.strerror or error}); free space, or send it elsewhere"
        ) from error


class Command(Protocol):
    """A parsed command line."""

    @property
    def verbose(self) -> bool: ...

    def execute(self) -> int: ...


def run_parsed(prog: str, parse: Callable[[], Command]) -> int:
    """Parse a command line and run what it says; the exit code."""
    parsed: list[Command] = []

    def parse_first() -> int:
        parsed.append(parse())
        return 0

    try:
        status = run_command(prog, parse_first, False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return run_command(prog, parsed[0].execute, parsed[0].verbose) if parsed else status


def run_command(prog: str, handler: Callable[[], int], verbose: bool) -> int:
    """Run `handler`; an error that a user can act on becomes one line on stderr and an exit code.

    Any other exception is a bug of SBS and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows only ASCII shows ? instead of failing
    stdout = cast(TextIO, ReadStream(sys.stdout))
    with contextlib.redirect_stderr(cast(TextIO, UnreadStream(sys.stderr))), contextlib.redirect_stdout(stdout):
        return _run(prog, handler, verbose)


def _run(prog: str, handler: Callable[[], int], verbose: bool) -> int:
    try:
        status = handler()
        _flush_stdout()
        return status
    except SbsError as error:
        if verbose:
            traceback.print_exc(file=sys.stderr)
        print_error(prog, str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        if verbose:
            traceback.print_exc(file=sys.stderr)
        print_error(
            prog, f"{error.name} is not installed; `pip install 'sbs-vision[{extra}]'`, or in a clone `make install`"
        )
        return SbsError.exit_code
    except KeyboardInterrupt:
        print_error(prog, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE
    except OSError as error:
        words = in_words(error)
        if words is None:
            raise
        if verbose:
            traceback.print_exc(file=sys.stderr)
        print_error(prog, words)
        return SbsError.exit_code


def in_words(error: OSError) -> str | None:
    """One line for a system error about a file; None for other errors."""
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        return f"cannot use {name} ({error.strerror or error}); see that it can be read and written, or name another"
    if error.errno in _OF_THE_MACHINE:
        return f"the system refuses ({error.strerror}); free space, or see what else this machine runs"
    return None


def parse_arguments(prog: str, parse: Callable[[], T]) -> T:
    """Call `parse` (a tyro call) and print a usage error as one line; it exits 2, or 0 for --help."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            try:
                return parse()
            finally:
                _flush_stdout()
    except SystemExit as stop:
        if stop.code in (None, 0):
            print_progress(captured.getvalue(), end="")
        else:
            print_error(prog, condense_usage(captured.getvalue()))
        raise
    except BrokenPipeError as error:
        if not _reader_is_gone():
            raise
        raise SystemExit(READER_GONE) from error


def _reader_is_gone() -> bool:
    """Whether the reader of stdout (`| head`) has gone; if so, the rest of the output is discarded."""
    try:
        print(flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)
        return True
    return False


def _discard(stream: TextIO) -> None:
    """Discard the buffer of `stream` and everything written to it from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush_stdout() -> None:
    print(end="", flush=True)  # stdout may be closed, and then print does nothing


def condense_usage(boxed: str) -> str:
    """The message of tyro's usage error without the box around it.

    The box holds a title, the error, perhaps details, then a hint at --help; horizontal rules separate these parts.
    """
    parts: list[list[str]] = [[]]
    for line in boxed.splitlines()[1:]:
        row = line.strip("│╭╮╰╯ ")
        if not row.strip("─-"):
            parts.append([])
        else:
            parts[-1].append(row)
    texts = [" ".join(part) for part in parts if part]
    if not texts:
        return boxed.strip() or "wrong usage"
    help_call = re.search(r"(?:run|see) (.* --help)", texts[-1])
    return texts[0].rstrip(".") + (f"; see {help_call[1]}" if help_call else "")


def print_error(prog: str, message: str) -> None:
    """Print an error as one line on stderr: without line breaks and control characters, cut to `LONGEST`."""
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"  # the remedy stands at the end
    print_progress(f"{prog}: error: {''.join(one if one.isprintable() else '?' for one in line)}")


def print_progress(message: str, end: str = "\n") -> None:
    """Print progress on stderr, so that stdout holds only tables and JSON."""
    print(message, end=end, file=UnreadStream(sys.stderr), flush=True)


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Metrics on one line: top1 97.5  images 360."""
    return "  ".join(f"{name} {value if isinstance(value, int) else f'{value:.4g}'}" for name, value in metrics.items())


def print_json(value: Any) -> None:
    """Print one JSON document as the last line of stdout; ValueError for NaN and infinity, which JSON lacks."""
    print(json.dumps(value, allow_nan=False), flush=True)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; returns whether glibc agreed.

    By default glibc returns large blocks to the kernel and faults them in again on the next step. On the CPU that took
    up to half of a training step's time (docs/LOG.md); keeping the blocks costs a few percent of memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**30))
