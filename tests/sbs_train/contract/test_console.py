"""A reader that has had enough is no error of ours."""

import subprocess
import sys

import pytest

from sbs_train.contract.console import READER_GONE


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
