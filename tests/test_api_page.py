"""The examples of docs/api.md and of `Search` run, and the package exports what the page names."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import sbs_train

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8", optionflags=doctest.ELLIPSIS)
    assert found.failed == 0 and found.attempted > 15


def test_example_of_search() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(sbs_train.Search, "Search")
    assert doctest.DocTestRunner().run(test).failed == 0 and test.examples


def test_public_names_come_when_they_are_asked_for() -> None:
    assert {"Plan", "SbsError", "Search", "SearchConfig", "Task", "compress", "load_plan"} <= set(sbs_train.__all__)
    assert all(getattr(sbs_train, name) is not None for name in sbs_train.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        sbs_train.nothing  # noqa: B018
    code = "import sys, sbs_train; sbs_train.SearchConfig, sbs_train.load_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
