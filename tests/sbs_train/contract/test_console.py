"""A reader that has had enough is no error of ours."""

import shlex
import subprocess
import sys

import pytest

from sbs_train.contract.console import LONGEST, READER_GONE, print_error


@pytest.mark.parametrize(
    "arguments", [["sbs_train.cli", "recipes"], ["sbs_train.cli", "--help"], ["sbs_deploy.cli", "--help"]]
)
def test_a_reader_that_closes_the_pipe_gets_no_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-u", "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == READER_GONE
    assert "Traceback" not in errors and "BrokenPipe" not in errors


WORK = """
import sys
from rich.console import Console
from sbs_train.contract import console
def handler():
    for step in range(3):
        console.print_progress("step")
        Console(stderr=True).print("step")
    print("done")
    return 0
raise SystemExit(console.run_command("sbs", handler, False))
"""


@pytest.mark.parametrize("stderr", ["reader gone", "closed"])
@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["-c", WORK], 0, "done\n"),
        (["-m", "sbs_deploy.cli", "lint", "nothing.onnx"], 2, ""),
        (["-m", "sbs_deploy.cli", "nonsense"], 2, ""),
        (["-m", "sbs_train.cli", "--nonsense"], 2, ""),
    ],
    ids=["work", "bad input", "usage", "usage of training"],
)
def test_the_work_goes_on_when_nobody_reads_stderr(arguments: list[str], status: int, output: str, stderr: str) -> None:
    command = shlex.join([sys.executable, *arguments])
    redirect = "2>&-" if stderr == "closed" else ""
    with subprocess.Popen(f"{command} {redirect}", shell=True, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stderr.close()
        printed = process.stdout.read()
    assert (process.returncode, printed) == (status, output)


def test_nobody_reads_stdout_and_it_is_no_error() -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m sbs_train.cli recipes >&-", shell=True, stderr=-1, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("content", ["a\nb", "\x1b[2J\x9b31m", "x" * 10**6, "\u202eevil", "\ud800", "\0"])
def test_an_error_is_one_printable_line_whatever_a_file_holds(capsys: pytest.CaptureFixture[str], content: str) -> None:
    print_error("sbs-train", f"plan.json: {content} is unknown; make it again")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.strip("\n").isprintable() and len(told) < LONGEST + 100
    assert told.startswith("sbs-train: error: plan.json: ") and told.endswith("make it again\n")
