"""Reads altered files, many in one process, under limits: `python -m tests.fuzz.worker SEED FIRST LAST SCRATCH`.

Every case ends in success or an SbsError, in time and memory, and opens nothing for writing outside the scratch
directory. Each is told before it starts and after it failed, a line of JSON each: the process may die of one.
"""

import contextlib
import faulthandler
import fnmatch
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LIMIT_S = 20.0
"""Of the processor: a neighbour on the machine takes none of it. Who waits longer is found by the parent."""
LIMIT_BYTES = 2 * 2**30
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1}
"""Events of the interpreter that change files, and how many of their arguments are paths."""
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "os.fork")


class TookTooLong(BaseException):
    """Not an Exception: no reader may catch it."""


class Watch:
    """What the interpreter opens for writing, or starts, outside one directory."""

    def __init__(self, inside: Path) -> None:
        self.inside, self.seen, self.on = str(inside), [], False
        self.seen: list[str]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS:
            self.seen.append(f"{event} {arguments[:2]!r}"[:300])
        elif event == "open" and (arguments[2] or 0) & WRITES:
            self._judge(event, arguments[0])
        elif event in PATHS:
            for path in arguments[: PATHS[event]]:
                self._judge(event, path)

    def _judge(self, event: str, path: Any) -> None:
        if isinstance(path, int):  # a descriptor that is open
            return
        where = os.path.realpath(os.fspath(path) if not isinstance(path, bytes) else path.decode())
        if where != os.devnull and not where.startswith(self.inside + os.sep):
            self.seen.append(f"{event} {where}"[:300])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Native libraries and warnings talk of every damaged file."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files below a directory."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            state = os.lstat(os.path.join(folder, name))
            found[os.path.relpath(os.path.join(folder, name), root)] = (state.st_size, state.st_mtime_ns)
    return found


def main(seed: str, first: int, last: int, scratch: Path) -> None:
    """Cases `first` to `last` of a seed."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = io.StringIO()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    import torch

    from sbs_train.contract.errors import SbsError
    from tests.fuzz.formats import all_formats

    torch.set_num_threads(1)
    tempfile.tempdir = str(scratch / "temporary")
    for name in ("temporary", "here"):
        (scratch / name).mkdir(exist_ok=True)
    os.chdir(scratch / "here")
    with quiet():
        formats = all_formats(scratch)
        for one in formats:  # warm: imports are no part of a case, and whole files are read
            for reader in one.readers:
                reader(one.root)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LIMIT_BYTES, resource.RLIM_INFINITY))

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    signal.signal(signal.SIGPROF, too_long)
    faulthandler.disable()
    watch = Watch(scratch.resolve())
    for index in range(first, last):
        one = formats[index % len(formats)]
        chance = random.Random(f"{seed}/{index}")
        whole = (one.root / one.file).read_bytes()
        alter = chance.choice(one.alterations)
        case = {"case": index, "format": one.name, "alteration": alter.__name__}
        print(json.dumps(case), file=out)
        (one.root / one.file).write_bytes(alter(chance, whole))
        vouched = _vouch(one.root, one.root / one.file) if chance.random() < 0.7 else {}
        before = tree(one.root)
        problems: list[str] = []
        for reader in one.readers:
            watch.seen, watch.on = [], True
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                with quiet():
                    reader(one.root)
            except SbsError:
                pass
            except TookTooLong:
                problems.append(f"took over {LIMIT_S} s")
            except BaseException:  # noqa: BLE001, any of them is what is looked for
                problems.append(traceback.format_exc(limit=-6))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                watch.on = False
            if time.process_time() - began > LIMIT_S:
                problems.append("took too long")
            problems += watch.seen
        left = [name for name, state in tree(one.root).items() if before.get(name) != state]
        strange = [name for name in left if not _may_write(name, one.writes)]
        problems += [f"left {name}" for name in strange] + [f"left {path} where it ran" for path in os.listdir(".")]
        for name in strange:
            (one.root / name).unlink()
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (one.root / one.file).write_bytes(whole)
        for path, content in vouched.items():
            path.write_bytes(content)
        if problems:
            print(json.dumps({**case, "problems": problems}), file=out)
    print(json.dumps({"done": last}), file=out)


def _may_write(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _vouch(root: Path, altered: Path) -> dict[Path, bytes]:
    """Let manifests agree with the altered file, so that it is read and not only hashed; what they held before."""
    sha256 = hashlib.sha256(altered.read_bytes()).hexdigest()
    changed = {}
    for path in root.rglob("*.manifest.json"):
        if path == altered:
            continue
        content = path.read_bytes()
        value = json.loads(content)
        if path.name == altered.name + ".manifest.json":
            value["sha256"] = sha256
        if altered.name in value["made_from"]:
            value["made_from"][altered.name] = sha256
        if json.dumps(value) != json.dumps(json.loads(content)):
            changed[path] = content
            path.write_text(json.dumps(value))
    return changed


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
