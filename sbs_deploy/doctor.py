"""What this machine can build and run, and the install commands of missing parts."""

import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.backends.compatibility import DISTRIBUTIONS, MachineFacts, examine_versions
from sbs_deploy.backends.spec import (
    BACKENDS,
    Backend,
    choose_backend,
    import_problem,
    installed_version,
    require_module,
)
from sbs_deploy.machine import clocks
from sbs_deploy.machine.hardware import this_hardware
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A dependency and the commands that need it."""

    module: str
    distributions: tuple[str, ...]
    """Names of the package; the first installed one gives the version."""
    purpose: str
    install: str
    core: bool = False
    """Whether all commands need the package."""


PACKAGES = tuple(
    Package(
        module=module, distributions=tuple(names.split()), purpose=purpose, install=f"pip install {install}", core=core
    )
    for core, module, names, purpose, install in (
        (True, "numpy", "numpy", "everything", "numpy"),
        (True, "onnx", "onnx", "everything", "onnx"),
        (True, "onnx_ir", "onnx_ir onnx-ir", "Q/DQ", "onnx_ir"),
        (True, "pydantic", "pydantic", "everything", "pydantic"),
        (True, "jinja2", "jinja2", "report", "jinja2"),
        (True, "plotly", "plotly", "report", "plotly"),
        (False, "torch", "torch", "train, export", "torch"),
        (False, "torch_pruning", "torch-pruning", "train, export", "torch-pruning"),
        (False, "pycuda", "pycuda", "run engines on a GPU", "pycuda (needs a CUDA toolkit)"),
        (False, "cuda.bindings", "cuda-bindings", "run engines on a GPU (instead of pycuda)", "cuda-python"),
        (False, "pynvml", "nvidia-ml-py", "GPU clocks", "nvidia-ml-py"),
    )
)


def examine() -> dict[str, Any]:
    """JSON-able findings: machine, packages, versions, backends, the choice of `--backend auto`."""
    machine = clocks.machine_state()
    gpu = clocks.gpu_name()
    packages = [asdict(package) | {"version": _version(package)} for package in PACKAGES]
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
        "versions": [asdict(finding) for finding in examine_versions(facts())],
        "backends": [_backend(backend, gpu, bindings) for backend in BACKENDS],
        "auto": auto,
        "ready": all(p["version"] for p in packages if p["core"]) and auto["backend"] is not None,
    }


def facts(root: Path = Path("/")) -> MachineFacts:
    """Hardware and versions of this machine, for comparison with the tables of versions."""
    modules = {
        backend.module: str(require_module(backend).__version__)
        for backend in BACKENDS
        if import_problem(backend) is None
    }
    versions = {name: installed_version(name) for name in DISTRIBUTIONS}
    return MachineFacts(
        **asdict(this_hardware(root)),
        python=platform.python_version(),
        architecture=platform.machine(),
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


def _version(package: Package) -> str | None:
    try:
        if importlib.util.find_spec(package.module) is None:
            return None
    except ModuleNotFoundError:  # the parent of a dotted name
        return None
    return next(filter(None, map(installed_version, package.distributions)), "unknown")


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
