"""What this machine can build and run, and the exact command for what is missing."""

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.backends.compatibility import Facts, examine_versions
from sbs_deploy.backends.spec import (
    BACKENDS,
    TENSORRT,
    TENSORRT_RTX,
    Backend,
    choose_backend,
    import_problem,
    require_module,
)
from sbs_deploy.machine import clocks
from sbs_deploy.machine.hardware import this_hardware
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A dependency and what stops working without it."""

    module: str
    distributions: tuple[str, ...]
    """Names under which it is installed; the first that is found gives the version."""
    purpose: str
    install: str
    core: bool = False
    """Whether nothing works without it."""


PACKAGES = (
    Package(module="numpy", distributions=("numpy",), purpose="everything", install="pip install numpy", core=True),
    Package(module="onnx", distributions=("onnx",), purpose="everything", install="pip install onnx", core=True),
    Package(
        module="onnx_ir", distributions=("onnx_ir", "onnx-ir"), purpose="Q/DQ", install="pip install onnx_ir", core=True
    ),
    Package(
        module="pydantic", distributions=("pydantic",), purpose="everything", install="pip install pydantic", core=True
    ),
    Package(module="jinja2", distributions=("jinja2",), purpose="report", install="pip install jinja2", core=True),
    Package(module="plotly", distributions=("plotly",), purpose="report", install="pip install plotly", core=True),
    Package(module="torch", distributions=("torch",), purpose="train, export", install="pip install torch"),
    Package(
        module="torch_pruning",
        distributions=("torch-pruning",),
        purpose="train, export",
        install="pip install torch-pruning",
    ),
    Package(
        module="pycuda",
        distributions=("pycuda",),
        purpose="run TensorRT engines",
        install="pip install pycuda (needs a CUDA toolkit)",
    ),
    Package(
        module="cuda.bindings",
        distributions=("cuda-bindings",),
        purpose="run TensorRT engines (instead of pycuda)",
        install="pip install cuda-python",
    ),
    Package(module="pynvml", distributions=("nvidia-ml-py",), purpose="GPU clocks", install="pip install nvidia-ml-py"),
)


VERSIONED = (
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    *("onnxruntime", "onnxruntime-gpu", "cuda-bindings"),
)
"""Distributions that the tables of versions are about."""


def examine() -> dict[str, Any]:
    """JSON-able findings: machine, packages, versions, backends, what `--backend auto` would take."""
    machine = clocks.machine_state()
    gpu = clocks.gpu_name()
    packages = [_package(package) for package in PACKAGES]
    bindings = any(p["version"] for p in packages if p["module"] in ("pycuda", "cuda.bindings"))
    try:
        choice = choose_backend("auto")
        auto: dict[str, str | None] = {"backend": choice.backend.name, "why": choice.why}
    except SbsError as error:
        auto = {"backend": None, "why": str(error)}
    return {
        "machine": machine.model_dump(mode="json"),
        "gpu": gpu,
        "packages": packages,
        "versions": [finding.as_json() for finding in examine_versions(facts())],
        "backends": [_backend(backend, gpu, bindings) for backend in BACKENDS],
        "auto": auto,
        "ready": all(p["version"] for p in packages if p["core"]) and auto["backend"] is not None,
    }


def facts(root: Path = Path("/")) -> Facts:
    """What of this machine the tables of versions are about."""
    hardware = this_hardware(root)
    modules = {
        backend.module: str(require_module(backend).__version__)
        for backend in (TENSORRT, TENSORRT_RTX)
        if import_problem(backend) is None
    }
    versions = {name: _installed(name) for name in VERSIONED}
    return Facts(
        python=platform.python_version(),
        architecture=platform.machine(),
        jetpack=hardware.jetpack,
        compute_capability=hardware.compute_capability,
        driver=hardware.driver,
        cuda=hardware.cuda,
        isolated=_isolated(Path(sys.prefix)),
        modules=modules,
        packages={name: version for name, version in versions.items() if version is not None},
    )


def _isolated(prefix: Path) -> bool:
    """Whether Python is a virtual environment without the system's packages (PEP 405)."""
    config = prefix / "pyvenv.cfg"
    if not config.is_file():
        return False
    text = config.read_text(encoding="utf-8", errors="replace").lower().replace(" ", "")
    return "include-system-site-packages=true" not in text


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(package: Package) -> dict[str, Any]:
    return asdict(package) | {"version": _version(package)}


def _version(package: Package) -> str | None:
    try:
        if importlib.util.find_spec(package.module) is None:
            return None
    except ModuleNotFoundError:  # the parent of a dotted name
        return None
    return next(filter(None, map(_installed, package.distributions)), "unknown")


def _backend(backend: Backend, gpu: str | None, bindings: bool) -> dict[str, Any]:
    problem = import_problem(backend)
    missing = [] if problem is None else [f"{problem}: {backend.install}"]
    can_build = problem is None and (gpu is not None or not backend.build_needs_gpu)
    can_run = problem is None and (not backend.run_needs_gpu or (gpu is not None and bindings))
    if backend.run_needs_gpu and gpu is None:
        missing.append(f"no NVIDIA GPU: cannot {'build or run' if backend.build_needs_gpu else 'run'} here")
    elif backend.run_needs_gpu and not bindings:
        missing.append("no CUDA binding for Python: pip install cuda-python")
    return {
        "backend": backend.name,
        "precisions": list(backend.precisions),
        "can_build": can_build,
        "can_run": can_run,
        "missing": missing,
    }
