"""One process writes to a run; the second learns who does, and nobody waits for the dead."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sbs_train.contract import lock, rundir
from sbs_train.contract.errors import SbsError

HOLD = """
import sys, time
from pathlib import Path
from sbs_train.contract import rundir
with rundir.locked(Path(sys.argv[1]), sys.argv[2]):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def holder(root: Path, owner: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, root, owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def training(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with holder(tmp_path, "sbs-train") as process:
        yield process
        process.kill()


def test_the_second_is_told_who_holds_the_run(tmp_path: Path, training: "subprocess.Popen[bytes]") -> None:
    for wait in (None, pytest.fail):  # a training run takes hours: nobody waits for it
        with (
            pytest.raises(SbsError, match=f"in use by sbs-train, process {training.pid} on .* for 0 min"),
            rundir.locked(tmp_path, "sbs-deploy build", wait=wait),
        ):
            pass


def test_a_lock_ends_with_its_process(tmp_path: Path, training: "subprocess.Popen[bytes]") -> None:
    training.send_signal(signal.SIGKILL)
    training.wait()
    with rundir.locked(tmp_path, "sbs-train"):
        pass
    assert not list(tmp_path.iterdir())


def test_deployments_wait_for_each_other(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path, "sbs-deploy build") as process:
        assert process.stdin is not None
        threading.Timer(0.5, process.stdin.close).start()
        with rundir.locked(tmp_path, "sbs-deploy bench", wait=said.append):
            assert process.wait() == 0
    assert len(said) == 1 and "sbs-deploy build" in said[0]


def test_one_process_may_take_it_again(tmp_path: Path) -> None:
    with rundir.locked(tmp_path, "sbs-train"):
        with rundir.locked(tmp_path, "sbs-train"):
            pass
        assert (tmp_path / lock.LOCK).is_file()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_to_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lock.os, "open", refuse)
    with rundir.locked(tmp_path, "sbs-deploy bundle"):
        pass


@pytest.mark.parametrize("lay", [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path)])
def test_what_lies_in_the_way_of_the_lock(tmp_path: Path, lay: object) -> None:
    assert callable(lay)
    lay(tmp_path / lock.LOCK)
    with pytest.raises(SbsError, match=r"cannot lock .*\.lock"), rundir.locked(tmp_path, "sbs-train"):
        pass
    assert not (tmp_path / "elsewhere").exists()


class TestWithoutLocks:
    """A file system that has none: a file stands for the lock."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "lockf", refuse)

    def test_it_is_held_and_let_go(self, tmp_path: Path) -> None:
        with rundir.locked(tmp_path, "sbs-train"):
            assert json.loads((tmp_path / ".lock.held").read_text())["pid"] == os.getpid()
        assert not list(tmp_path.iterdir())

    def test_the_second_is_refused_with_the_file_to_remove(self, tmp_path: Path) -> None:
        held = {"owner": "sbs-train", "host": "elsewhere", "pid": 1, "since": 0}
        (tmp_path / ".lock.held").write_text(json.dumps(held))
        with (
            pytest.raises(SbsError, match=r"process 1 on elsewhere.*remove .*\.lock\.held"),
            rundir.locked(tmp_path, "sbs-train"),
        ):
            pass

    def test_a_dead_process_of_this_machine_holds_nothing(self, tmp_path: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        held = {"owner": "sbs-train", "host": lock.socket.gethostname(), "pid": process.pid, "since": 0}
        (tmp_path / ".lock.held").write_text(json.dumps(held))
        with rundir.locked(tmp_path, "sbs-train"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "since": "y"}', b"\xff" * 5000])
def test_a_damaged_lock_still_refuses(tmp_path: Path, training: "subprocess.Popen[bytes]", content: bytes) -> None:
    (tmp_path / lock.LOCK).write_bytes(content)
    with pytest.raises(SbsError, match="in use by"), rundir.locked(tmp_path, "sbs-train"):
        pass
