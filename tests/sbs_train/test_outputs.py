"""Whatever happens to standard output and to files: one line, the right exit code, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sbs_train import cli


def run(*arguments: str, **streams: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sbs_train.cli", *arguments]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "--json"), ("--help",)])
def test_a_full_standard_output_is_one_line_and_2(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "standard output" in done.stderr and "No space left" in done.stderr


def test_a_full_standard_error_loses_the_message_alone() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sbs_train.cli", "evaluate", "/absent"]
        assert subprocess.run(command, stderr=full).returncode == 2


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("--out", LONG),
        ("--out", f"{LONG}/run"),
        ("--resume", "--out", LONG),
        ("evaluate", LONG),
        ("sweep", "--targets", "2x", "--out", LONG),
        ("sweep", "--resume", "--out", LONG),
        ("evaluate", "a\0b"),
    ],
)
def test_names_that_no_file_can_have(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="drops its rights, which only root can")
@pytest.mark.parametrize("arguments", [("evaluate",), ("--resume", "--out"), ("sweep", "--resume", "--out")])
def test_a_run_that_may_not_be_entered(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    closed = tmp_path / "run"
    closed.mkdir(mode=0o000)
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    given = [*arguments, str(closed)]
    imports = (
        "import os, sbs_train.stages.profile, sbs_train.stages.run, sbs_train.sweep.run; from sbs_train import cli"
    )
    script = f"{imports}; os.setuid(65534); raise SystemExit(cli.main({given!r}))"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, cwd="/")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and str(closed) in done.stderr
