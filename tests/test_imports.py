"""A device without torch can import what it needs and read every command's help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("calib", "sbs_train", "sbs_deploy")

# The only modules that may import torch when they are imported; a new module is torch-free unless it is named here.
NEED_TORCH = {
    "calib.collect",
    "sbs_deploy.export.float_onnx",
    "sbs_deploy.export.marks",
    "sbs_deploy.export.slim",
}
NEED_TORCH_BELOW = ("sbs_train.inputs", "sbs_train.quant", "sbs_train.stages")

TRAINING = ("torch", "torchvision", "lightning_fabric", "torch_pruning", "tensorboard")
RUNTIMES = ("onnxruntime", "tensorrt_rtx", "tensorrt", "openvino", "pycuda")

HELP = [
    "sbs_train.cli",
    "sbs_train.cli sweep",
    "sbs_train.cli profile",
    "sbs_train.cli evaluate",
    "sbs_train.cli recipes",
    "sbs_deploy.cli",
    *(
        f"sbs_deploy.cli {command}"
        for command in ("build", "export", "validate", "bench", "report", "bundle", "lint", "doctor", "profile-device")
    ),
]

BLOCK = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked by the test: " + name, name=name)
sys.meta_path.insert(0, Block())
"""

IMPORT_ALL = """
import traceback
failed = 0
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception:
        failed += 1
        print(name + ":", traceback.format_exc(limit=-2))
sys.exit(failed > 0)
"""

RUN_MAIN = """
sys.argv = {argv!r}
sys.exit(importlib.import_module({module!r}).main())
"""


def every_module() -> list[str]:
    """Dotted names of all modules of the three packages, read from the disk."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


def needs_torch(name: str) -> bool:
    return name in NEED_TORCH or name.startswith(tuple(f"{package}." for package in NEED_TORCH_BELOW))


def run_blocked(code: str, blocked: tuple[str, ...], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python `code` in a new process in which importing any of `blocked` fails."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_list_names_modules_that_exist() -> None:
    modules = every_module()
    assert modules
    assert not NEED_TORCH - set(modules)
    for package in NEED_TORCH_BELOW:
        assert any(name.startswith(f"{package}.") for name in modules)


def test_torch_free_modules_import_without_torch() -> None:
    names = [name for name in every_module() if not needs_torch(name)]
    result = run_blocked(IMPORT_ALL.format(names=names), TRAINING)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("command", HELP)
def test_help_needs_neither_torch_nor_a_runtime(command: str, tmp_path: Path) -> None:
    module, *arguments = command.split()
    code = RUN_MAIN.format(argv=[module.replace("_", "-").removesuffix(".cli"), *arguments, "--help"], module=module)
    result = run_blocked(code, TRAINING + RUNTIMES, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "usage" in result.stdout.lower()
    assert not list(tmp_path.iterdir()), "--help wrote a file"
