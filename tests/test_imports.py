"""A device without torch can import what it needs and read every command's help."""

import ast
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
    "sbs_deploy.engines.as_model",
    "sbs_deploy.engines.evaluate",
    "sbs_deploy.export.at_hand",
    "sbs_deploy.export.float_onnx",
    "sbs_deploy.export.golden",
    "sbs_deploy.export.marks",
    "sbs_deploy.export.slim",
    "sbs_train.example",
}
NEED_TORCH_BELOW = ("sbs_train.inputs", "sbs_train.network", "sbs_train.quant", "sbs_train.stages", "sbs_train.tasks")

TRAINING = ("torch", "torchvision", "lightning_fabric", "torch_pruning", "tensorboard")
RUNTIMES = ("onnxruntime", "tensorrt_rtx", "tensorrt", "openvino", "pycuda")

# Imports inside functions keep these away until they are needed; any other import stands at the top of its file.
LAZY_PACKAGES = {*TRAINING, *RUNTIMES, "pynvml", "rich", "plotly", "jinja2"}
# These rooms import, when they are called, modules that need torch or a runtime, or that no `--help` needs.
LAZY_ROOMS = {
    "sbs_deploy.api": "each function imports what it does",
    "sbs_deploy.commands": "each command imports what it does",
    "sbs_deploy.build": "the export needs torch",
    "sbs_deploy.opening": "no command needs bundles but for a bundle",
    "sbs_deploy.export.pipeline": "its steps need torch",
    "sbs_deploy.measure.devices.networks": "models by name need torch",
    "sbs_deploy.backends.tensorrt.device": "the one of two bindings that is installed",
}

HELP = [
    "sbs_train.cli",
    "sbs_train.cli sweep",
    "sbs_train.cli profile",
    "sbs_train.cli evaluate",
    "sbs_train.cli recipes",
    "sbs_deploy.cli evaluate",
    "sbs_deploy.cli",
    *(
        f"sbs_deploy.cli {command}"
        for command in (
            "build",
            "export",
            "validate",
            "bench",
            "report",
            "bundle",
            "lint",
            "doctor",
            "profile-device",
        )
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


def test_torch_free_modules_import_without_torch_and_without_a_runtime() -> None:
    names = [name for name in every_module() if not needs_torch(name)]
    result = run_blocked(IMPORT_ALL.format(names=names), TRAINING + RUNTIMES)
    assert result.returncode == 0, result.stdout + result.stderr


def test_imports_inside_functions_are_listed_above() -> None:
    for path in sorted((ROOT / "sbs_deploy").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if any(module == room or module.startswith(f"{room}.") for room in LAZY_ROOMS):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    assert {name.partition(".")[0] for name in names} <= LAZY_PACKAGES, (module, function.name, names)


@pytest.mark.parametrize("command", HELP)
def test_help_needs_neither_torch_nor_a_runtime(command: str, tmp_path: Path) -> None:
    module, *arguments = command.split()
    code = RUN_MAIN.format(argv=[module.replace("_", "-").removesuffix(".cli"), *arguments, "--help"], module=module)
    result = run_blocked(code, TRAINING + RUNTIMES, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "usage" in result.stdout.lower()
    assert not list(tmp_path.iterdir()), "--help wrote a file"
