"""The public functions: the examples of their docstrings and of docs/api_deploy.md run, and the commands call them."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sbs_deploy
from sbs_deploy import api
from sbs_deploy.archive import INDEX
from sbs_deploy.bundle import make_bundle
from sbs_deploy.cli import main
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.run import outputs_of
from sbs_train.contract.errors import GateFailed, SbsError
from sbs_train.contract.results import TimedRow
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.corruption import save_signed
from tests.sbs_deploy.golden import golden_of
from tests.sbs_deploy.whole_run import make_whole_run

ROOT = Path(__file__).parents[2]
NAMES = ("bench", "build", "bundle", "export", "lint", "load", "report", "validate")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run, and runs/latest."""
    folder = tmp_path_factory.mktemp("here")
    run = make_whole_run(folder / "runs" / "small")
    (run.root / INDEX).write_text("{}")  # as from a bundle: nothing is exported again
    (folder / "runs" / "latest").symlink_to("small")
    return folder


@pytest.mark.parametrize("name", [*NAMES, "open_run"])
def test_examples_of_docstrings(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    function = getattr(api, name)
    globals_ = dict(vars(api))
    tests = doctest.DocTestFinder(recurse=False).find(function, name, globs=globals_)
    assert [bool(test.examples) for test in tests] == [True]
    assert doctest.DocTestRunner().run(tests[0]).failed == 0


def test_examples_of_the_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    found = doctest.testfile(str(ROOT / "docs" / "api_deploy.md"), module_relative=False, encoding="utf-8")
    assert found.failed == 0 and found.attempted > 5


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    code = (
        "import sys, sbs_deploy.build, sbs_deploy.report.page, sbs_deploy.validate.run\n"
        "import sbs_deploy\n"
        "from sbs_deploy.build import build_run\n"
        "from sbs_deploy import lint\n"
        f"assert all(callable(getattr(sbs_deploy, name)) for name in {NAMES})\n"
        "assert sbs_deploy.build is sys.modules['sbs_deploy.api'].build and callable(lint)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert set(sbs_deploy.__all__) >= set(NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'buidl'"):
        sbs_deploy.buidl  # noqa: B018


def test_a_run_is_a_path_a_rundir_or_a_bundle(here: Path, tmp_path: Path) -> None:
    run = RunDir(here / "runs" / "small")
    make_bundle(run, tmp_path / "small.sbs.zip", images=12, progress=lambda line: None)
    for given in (str(run.root), run.root, run, str(tmp_path / "small.sbs.zip")):
        assert sbs_deploy.validate(given).passed
    built = sbs_deploy.build(tmp_path / "small.sbs.zip", placement="plan")
    assert built.path.is_relative_to(tmp_path / "small")
    golden = golden_of(run)
    with sbs_deploy.load(os.fspath(built)) as engine:
        found = engine.run(golden.inputs)
        assert (engine.name, engine.precision) == (built.path.name, "int8")
    expected = outputs_of(load_onnx(run.model_ort), golden.inputs)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=0.05)


def test_results_are_records(here: Path) -> None:
    run, said = RunDir(here / "runs" / "small"), list[str]()
    built = sbs_deploy.build(run, "fp32", "onnxruntime", progress=said.append)
    assert built.details["precision"] == "fp32" and any("engine" in line for line in said)
    assert sbs_deploy.build(run, "fp32", "onnxruntime").skipped
    rows = sbs_deploy.bench(run, 2, against=("fp32",))
    assert rows and all(row.batch == 2 for row in rows) and any(isinstance(row, TimedRow) for row in rows)
    page = sbs_deploy.report(run, here / "page.html")
    assert page == here / "page.html" and "<html" in page.read_text()
    assert sbs_deploy.lint(run.model_trt, "ort")[0].as_json()["severity"] in ("error", "warning")


def test_the_commands_do_what_the_functions_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(here / "runs" / "small")
    built = sbs_deploy.build(run, placement="plan")
    assert main(["build", str(run.root), "--backend", "onnxruntime", "--placement", "plan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["skipped"] and document["engine"] == str(built.path)
    assert main(["validate", str(run.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document == sbs_deploy.validate(run).model_dump(mode="json")


def test_wrong_use_is_one_error(here: Path, tmp_path: Path) -> None:
    run = RunDir(here / "runs" / "small")
    for call, words in (
        (lambda: sbs_deploy.build(tmp_path / "none"), "no run at"),
        (lambda: sbs_deploy.build(run, backend="tflite"), "choose one of"),  # type: ignore[arg-type]
        (lambda: sbs_deploy.build(run, batch_max=8), "--batch-max is a setting of TensorRT"),
        (lambda: sbs_deploy.load(run.model_ort), "is no engine; build one"),
        (lambda: sbs_deploy.load(tmp_path / "none.engine"), "is missing|no manifest"),
        (lambda: sbs_deploy.bench(run, ()), "--batch needs one or more sizes"),
        (lambda: sbs_deploy.bundle(run, tmp_path / "x.zip"), "known by its name"),
        (lambda: sbs_deploy.bundle(run, images=0), "--images 0"),
        (lambda: sbs_deploy.lint(tmp_path / "none.onnx"), "is missing"),
    ):
        with pytest.raises(SbsError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["precision", "backend", "legalise", "outputs", "depthwise", "placement"])
def test_a_choice_that_build_does_not_have_is_refused(here: Path, name: str) -> None:
    with pytest.raises(SbsError, match=name):
        sbs_deploy.build(here / "runs" / "latest", **{name: "other"})


def test_a_failed_gate_is_a_result_of_validate_and_an_error_of_build(tmp_path: Path) -> None:
    run = make_whole_run(tmp_path / "run")
    arrays = dict(np.load(run.golden))
    save_signed({**arrays, "output/logits": np.roll(arrays["output/logits"], 1, axis=1)}, run.golden)
    found = sbs_deploy.validate(run)
    assert not found.passed and found.failures
    (run.root / INDEX).write_text("{}")
    with pytest.raises(GateFailed, match="validation failed"):
        sbs_deploy.build(run, placement="plan")


def test_evaluate_asks_which_engine_is_meant(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.engines.mkdir(parents=True)
    run.config.write_text("{}")
    with pytest.raises(SbsError, match="no engine of precision int8"):
        api.evaluate(run)
    for backend in ("onnxruntime", "openvino"):
        (run.engines / f"model.int8.{backend}.onnx").touch()
    with pytest.raises(SbsError, match=r"model\.int8\.onnxruntime\.onnx, model\.int8\.openvino\.onnx"):
        api.evaluate(run)
    with pytest.raises(SbsError, match="task is object"):
        api.evaluate(run, object())  # type: ignore[arg-type]


def test_batch_sizes_are_whole_numbers(here: Path) -> None:
    with pytest.raises(SbsError, match="batch is"):
        api.bench(here / "runs" / "small", ["x"])  # type: ignore[list-item]
    with pytest.raises(SbsError, match="batch is None"):
        api.bench(here / "runs" / "small", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["build", "load", "validate", "evaluate", "bench", "report", "bundle", "lint"])
@pytest.mark.parametrize("value", [None, 3, ""])
def test_what_is_no_path_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SbsError, match=r"^(run|engine|model) is "):
        getattr(api, name)(value)
