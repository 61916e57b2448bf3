"""From a bundle to a report without torch: in a process that cannot find it, and where it never was."""

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from packaging.requirements import Requirement

from sbs_deploy.bundle import make_bundle
from sbs_deploy.export.codes import load_arrays
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.whole_run import make_whole_run

ROOT = Path(__file__).parents[1]
TRAINING = ("torch", "torchvision", "lightning_fabric", "torch_pruning", "tensorboard", "safetensors")
COMMANDS = [
    ["build", "--engine", "int8", "--backend", "onnxruntime", "--placement", "plan"],
    ["build", "--engine", "int8", "--backend", "onnxruntime", "--placement", "plan"],
    ["export"],
    ["validate"],
    ["bench", "--batch", "1", "2", "--rounds", "2"],
    ["report"],
]

# Torch is not refused but not found, which is what `importlib.util.find_spec` tells on a device.
HIDDEN = """
import json, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {training!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from sbs_deploy.cli import main
codes = [main([command, {bundle!r}, *options, "--json"]) for command, *options in {commands!r}]
assert not [name for name in {training!r} if name in sys.modules]
sys.exit(any(codes))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle, alone on its device."""
    run = make_whole_run(tmp_path / "runs" / "small")
    path = tmp_path / "device" / "small.sbs.zip"
    make_bundle(run, path, images=10, progress=lambda line: None)
    return path


def check(documents: list[dict], device: Path) -> None:
    """What the commands say, and what they leave."""
    run = RunDir(device / "small")
    first, second, _, validation, rows, report = documents
    assert Path(first["engine"]) == Path("small/deploy/engines/model.int8.onnxruntime.onnx")
    assert first["float_layers"] == ["conv3"] and not first["skipped"] and second["skipped"]
    assert validation["passed"] and validation["codes_equal"] and validation["samples"] == 10
    assert len(load_arrays(run.golden)["labels"]) == 10
    measured = [row for row in rows if row["error"] is None]
    assert {row["batch"] for row in measured} == {1, 2}
    assert {row["precision"] for row in measured} == {"fp32", "int8"}
    assert all(row["latency_p50_ms"] > 0 for row in measured)
    assert Path(report["report"]) == Path("small/deploy/report.html") and run.report.is_file()
    assert sorted(path.name for path in device.iterdir()) == ["small", "small.sbs.zip"]


def test_a_process_that_cannot_find_torch(bundle: Path) -> None:
    code = HIDDEN.format(training=TRAINING, bundle=bundle.name, commands=COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bundle.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check([json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))], bundle.parent)


def required(name: str, extras: frozenset[str], found: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """The installed distributions that `name` needs, and those that they need."""
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        wanted = any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}) if requirement.marker else True
        if wanted and requirement.name not in found:
            found.add(requirement.name)
            yield importlib.metadata.distribution(requirement.name)
            yield from required(requirement.name, frozenset(requirement.extras), found)


def install(site: Path) -> list[str]:
    """Link the project with the `cpu` extra into site-packages, from what is installed here; the names of it all."""
    names = []
    for distribution in required("sbs-vision", frozenset({"cpu"}), set()):
        names.append(distribution.name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    for package in ("calib", "sbs_train", "sbs_deploy"):
        (site / package).symlink_to(ROOT / package)
    return names


@pytest.mark.slow
def test_an_environment_of_the_base_install(bundle: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    names = install(site)
    assert {"numpy", "onnx", "onnxruntime"} <= set(names) and not {"torch", "safetensors"} & set(names)
    python = tmp_path / "venv" / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *arguments],
            cwd=bundle.parent,
            env=clean,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    for module in TRAINING:
        assert call("-c", f"import {module}").returncode == 1, f"{module} is there"
    documents = []
    for command, *options in COMMANDS:
        done = call("-m", "sbs_deploy.cli", command, bundle.name, *options, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        documents.append(json.loads(done.stdout.splitlines()[-1]))
    check(documents, bundle.parent)
