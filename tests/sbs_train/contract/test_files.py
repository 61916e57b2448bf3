"""Outputs go to regular files alone, whatever lies in the way; inputs come from regular files alone."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract import console, files, rundir
from sbs_train.contract.errors import SbsError


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    target = path.parent.parent / "target"
    target.write_text("theirs")
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent.parent / "absent")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("lay", [fifo, link, dangling, directory])
def test_only_regular_files_are_replaced(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir()
    lay(path)
    before = path.lstat()
    with pytest.raises(SbsError, match=r"report\.html.*not a regular file"):
        rundir.write_text(path, "ours")
    assert path.lstat() == before and os.listdir(path.parent) == [path.name]
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "theirs"


@pytest.mark.parametrize("make", [rundir.require_replaceable, rundir.create_run])
def test_a_dash_is_no_file_name(
    make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SbsError, match="stands for standard output"):
        make(Path("-"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices_stay_what_they_are(device: str) -> None:
    with pytest.raises(SbsError, match="a device"):
        rundir.write_text(Path(device), "ours")
    assert stat.S_ISCHR(os.lstat(device).st_mode)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_is_written_to(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rundir.write_json(Path(name), {"a": 1})
    assert capsys.readouterr().out == '{\n "a": 1\n}\n'


@pytest.mark.parametrize("inner", ["deploy", "deploy/engines", "checkpoints"])
def test_a_link_in_a_run_leads_nowhere(tmp_path: Path, inner: str) -> None:
    run = rundir.create_run(tmp_path / "run")
    rundir.write_json(run.config, {})
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.root / inner).parent.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        (run.root / inner).rmdir()
    (run.root / inner).symlink_to(outside)
    with pytest.raises(SbsError, match="is a link"):
        rundir.write_text(run.root / inner / "x.json", "{}")
    assert not list(outside.iterdir())


def test_a_run_may_be_a_link_itself(tmp_path: Path) -> None:
    run = rundir.create_run(tmp_path / "run")
    rundir.write_json(run.config, {})
    rundir.link_latest(run)
    rundir.write_text(tmp_path / "latest" / "deploy" / "x.json", "{}")
    assert (run.deploy / "x.json").read_text() == "{}"


@pytest.mark.parametrize("lay", [fifo, directory])
def test_only_regular_files_are_read(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    path = tmp_path / "plan.json"
    lay(path)
    for read in (rundir.read_bytes, rundir.read_json, rundir.sha256_of):
        with pytest.raises(SbsError, match=r"plan\.json"):  # and none of them waits for a writer
            read(path)


def test_nobody_else_can_enter_where_a_file_is_made(tmp_path: Path) -> None:
    with rundir.atomic_path(tmp_path / "x") as temporary:
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o600 == 0o600


KILLED = """
import sys, time
from pathlib import Path
from sbs_train.contract import rundir
with rundir.atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        rundir.write_text(tmp_path / "b", "")
        assert len(list(tmp_path.glob(".sbs-*"))) == 1
        process.send_signal(signal.SIGKILL)
    rundir.write_text(tmp_path / "b", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


OPERATIONS = ("os.open", "os.replace", "os.mkdir", "os.scandir", "os.fsync", "os.lstat", "os.fstat", "os.rename")
ERRORS = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE)


def work(root: Path) -> None:
    run = rundir.create_run(root)
    with rundir.locked(root, "sbs-train"):
        rundir.write_json(run.config, {"a": 1})
        rundir.write_manifest(run.config, {})
        rundir.require_whole(run.config, "sbs-train")
        rundir.open_run(root)
        rundir.read_json(run.config)


@given(operation=st.sampled_from(OPERATIONS), code=st.sampled_from(ERRORS), left=st.integers(0, 12))
def test_whatever_the_system_refuses_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, operation: str, code: int, left: int
) -> None:
    root, name = tmp_path_factory.mktemp("refused") / "run", operation.removeprefix("os.")
    plain, calls = getattr(os, name), [left]

    def refusing(path: object, *args: object, **kwargs: object) -> object:
        calls[0] -= 1
        if calls[0] < 0:
            named = path if isinstance(path, str | bytes | os.PathLike) else None
            raise OSError(code, os.strerror(code), *([os.fspath(named)] if named is not None else []))
        return plain(path, *args, **kwargs)

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, refusing)
        patch.setattr(console, "print_error", lambda prog, message: said.append(message))

        def handler() -> int:
            work(root)
            return 0

        status = console.run_command("sbs-train", handler, False)
    assert status == (2 if said else 0)
    assert all(os.strerror(code) in message and "\n" not in message for message in said)


def test_a_descriptor_is_not_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        rundir.write_text(tmp_path / "a", "x")
        rundir.read_bytes(tmp_path / "a")
        with pytest.raises(SbsError):
            rundir.read_bytes(tmp_path / "absent")
    assert len(os.listdir("/proc/self/fd")) == before


def test_on_a_file_system_without_locks_old_directories_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    old, new = tmp_path / ".sbs-old.tmp", tmp_path / ".sbs-new.tmp"
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    rundir.write_text(tmp_path / "a", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".sbs-new.tmp", "a"]


@pytest.mark.parametrize("lay", [fifo, link, dangling, directory])
def test_only_regular_files_grow(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    path = tmp_path / "out" / "train.log"
    path.parent.mkdir()
    lay(path)
    with pytest.raises(SbsError, match=r"cannot write .*train\.log"), rundir.appending(path):
        pass
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "theirs"


def test_a_held_run_has_no_directory_that_is_a_link(tmp_path: Path) -> None:
    run = rundir.create_run(tmp_path / "run")
    (run.engines).mkdir(parents=True)
    (run.engines / "model.int8.openvino.onnx.cache").symlink_to(tmp_path)
    with pytest.raises(SbsError, match="is a link"), rundir.locked(run.root, "sbs-deploy build"):
        pass
    (run.engines / "model.int8.openvino.onnx.cache").unlink()
    with rundir.locked(run.root, "sbs-deploy build"):  # the refusal let go of the lock
        pass
