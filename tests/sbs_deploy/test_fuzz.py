"""Corrupted files: whatever is wrong with them, one line says so, and nothing is written beside the run."""

import contextlib
import importlib.util
import io
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from sbs_deploy.bundle import EXPORTED, open_bundle
from sbs_deploy.cli import main
from sbs_deploy.measure.protocol import Contestant, Measurement, Protocol, measure
from sbs_train.contract import rundir
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy import corruption
from tests.sbs_deploy.whole_run import make_whole_run

COMMANDS = {
    "build": ("--backend", "onnxruntime", "--placement", "plan"),
    "validate": (),
    "bench": ("--rounds", "1"),
    "report": (),
    "bundle": (),
}
READ = {
    "build": ("plan.json", "deploy/model.trt.onnx", "deploy/model.ort.onnx", "deploy/model.slim.onnx"),
    "validate": ("deploy/model.trt.onnx", "deploy/model.ort.onnx", "deploy/model.slim.npz", "deploy/golden.npz"),
    "bench": ("plan.json",),
    "report": ("plan.json",),
    "bundle": tuple(path.as_posix() for path in EXPORTED),
}
"""What each command cannot do without."""
RANDOM = st.integers(0, 2**32 - 1).map(random.Random)
EXAMPLES = [15, pytest.param(120, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def a_device() -> Iterator[None]:
    """No torch, and short measurements."""
    find_spec = importlib.util.find_spec

    def find_all_but_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find_spec(name, package)

    def measure_briefly(contestants: Mapping[str, Contestant], protocol: Protocol) -> dict[str, Measurement]:
        return measure(contestants, replace(protocol, warmup_ms=0.0, block_ms=0.0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", find_all_but_torch)
        patch.setattr("sbs_deploy.measure.rows.measure", measure_briefly)
        yield


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def whole(a_device: None, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """With engines, one of them for a GPU, and a benchmark. Do not write."""
    run = make_whole_run(tmp_path_factory.mktemp("runs") / "small")
    for command in ("build", "bench"):
        assert call(command, run.root)[0] == 0
    engine = run.engines / "model.int8.tensorrt-rtx.engine"
    engine.write_bytes(random.Random(0).randbytes(5000))
    rundir.write_manifest(engine, {path.name: rundir.sha256_of(path) for path in (run.model_trt, run.plan)})
    return run


@contextlib.contextmanager
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory for one example."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        yield Path(directory)


def many(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])


def call(command: str, path: Path | str) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main([command, str(path), *COMMANDS[command]])
    return code, errors.getvalue().splitlines()


def check(code: int, lines: list[str]) -> None:
    """Done, or refused in one line, the last."""
    said = [line for line in lines if line.startswith("sbs-deploy: error: ")]
    assert code in (0, 1, 2), code
    assert said == ([lines[-1]] if code else []), lines
    assert not any("Traceback" in line for line in lines)


def files_beside(root: Path, run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and run not in path.parents}


def vouch(run: RunDir, path: Path) -> None:
    """Make all manifests agree with the corrupted file, so that it is read and not only hashed."""
    own = rundir.manifest_path(path)
    for other in run.root.rglob("*.manifest.json"):
        with contextlib.suppress(Exception):  # it may be the corrupted file
            document = rundir.read_json(other)
            if other == own:
                document["sha256"] = rundir.sha256_of(path)
            if path.name in document["made_from"]:
                document["made_from"][path.name] = rundir.sha256_of(path)
            rundir.write_json(other, document)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_file_of_a_run(whole: RunDir, tmp_path: Path, examples: int) -> None:
    names = sorted(path.relative_to(whole.root).as_posix() for path in whole.root.rglob("*") if path.is_file())

    @many(examples)
    @given(
        st.sampled_from(list(COMMANDS)), st.sampled_from(names), st.sampled_from(corruption.ALL), st.booleans(), RANDOM
    )
    def holds(command: str, name: str, corrupt: corruption.Corruption, vouched: bool, random: random.Random) -> None:
        with scratch(tmp_path) as directory:
            run = RunDir(directory / "run")
            shutil.copytree(whole.root, run.root)
            path = run.root / name
            path.write_bytes(corrupt(random, path.read_bytes()))
            if vouched:
                vouch(run, path)
            before = files_beside(tmp_path, run.root)
            code, lines = call(command, run.root)
            check(code, lines)
            made = files_beside(tmp_path, run.root)
            if command == "bundle":
                made.pop(tmp_path / "here" / "run.sbs.zip", None)
                (tmp_path / "here" / "run.sbs.zip").unlink(missing_ok=code != 0)
            assert made == before

    holds()


@pytest.mark.parametrize("corrupt", [corruption.truncated, corruption.replaced])
@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in READ.items() for name in names])
def test_what_is_needed_and_broken_is_refused(
    whole: RunDir, tmp_path: Path, command: str, name: str, corrupt: corruption.Corruption
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(whole.root, run.root)
    path = run.root / name
    path.write_bytes(corrupt(random.Random(1), path.read_bytes()))
    code, lines = call(command, run.root)
    check(code, lines)
    assert code == 2 and path.name in lines[-1] and "again" in lines[-1]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_bundle(whole: RunDir, tmp_path: Path, examples: int) -> None:
    assert call("bundle", whole.root)[0] == 0
    packed = Path("small.sbs.zip").read_bytes()
    expected = contents(open_bundle(Path("small.sbs.zip"), lambda line: None).root)

    @many(examples)
    @given(st.sampled_from(corruption.BYTES), RANDOM)
    def holds(corrupt: corruption.Corruption, random: random.Random) -> None:
        with scratch(tmp_path) as directory:
            path = directory / "small.sbs.zip"
            path.write_bytes(corrupt(random, packed))
            before = files_beside(tmp_path, directory / "small")
            code, lines = call("validate", path)
            check(code, lines)
            assert files_beside(tmp_path, directory / "small") == before
            assert code in (0, 2)
            if code == 0:  # a bit that nobody reads, such as one of a time
                found = contents(directory / "small")
                assert {name: found[name] for name in expected} == expected
            else:
                assert list(directory.iterdir()) == [path]

    holds()


def contents(root: Path) -> dict[str, bytes]:
    """What a bundle brought, the verdict aside, which is written anew."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if "validation" not in name}


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_path(tmp_path: Path, examples: int) -> None:
    @many(examples)
    @given(st.sampled_from(list(COMMANDS)), st.text(min_size=1).filter(lambda text: not text.startswith("-")))
    def holds(command: str, text: str) -> None:
        code, lines = call(command, text)
        check(code, lines)
        assert code == 2 and not any(Path.cwd().iterdir())

    holds()
    for text in ("x" * 5000, "\0", "/dev/null", ".", "/"):
        code, lines = call("validate", text)
        check(code, lines)
        assert code == 2
