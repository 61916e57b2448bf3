"""What each backend is, what it needs and what it executes, as data.

A backend's dialect names the ONNX file it is built from: TensorRT wants int8 with zero-point 0, ONNX Runtime uint8.
"""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

from sbs_deploy.machine import clocks
from sbs_train.contract.errors import SbsError

Dialect = Literal["trt", "ort"]
Precision = Literal["int8", "fp8", "fp16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to execute a plan."""

    name: str
    """As `--backend` takes it."""
    module: str
    """Python module that builds and runs engines."""
    runtime: str
    """Folder beside this file that answers for it."""
    marker: str
    """An attribute the real module has; stubs and empty folders of the same name lack it."""
    dialect: Dialect
    precisions: tuple[Precision, ...]
    float_type: Literal["fp16", "fp32"]
    """What is not quantized is computed in."""
    container_bits: int
    """Narrowest integers a convolution computes in: fewer planned bits save storage, not time."""
    depthwise: Literal["int8", "fp16"] = "int8"
    """What depthwise convolutions are built as unless `--depthwise` says otherwise."""
    channel_multiple: int
    """INT8 channels are padded to, or slow off, multiples of this."""
    build_needs_gpu: bool
    run_needs_gpu: bool
    install: str
    """Exact command that installs the module."""
    hint: str = ""
    """What an error adds to that command."""
    executor: str = ""
    """Where a backend has several: an ONNX Runtime provider (`--provider`) or an OpenVINO device (`--device`)."""
    numbered: bool = False
    """Whether a machine may have several of that executor, which a number tells apart: GPU.1."""
    distributions: tuple[str, ...] = ()
    """Packages that bring the module, of which only one may be installed: each overwrites the other's files."""

    @property
    def label(self) -> str:
        """For file names and tables: onnxruntime, onnxruntime-cuda, openvino-gpu0."""
        usual = self.executor.lower() in ("", "cpu")
        return self.name if usual else f"{self.name}-{self.executor.lower().replace('.', '')}"

    @property
    def flags(self) -> str:
        """What `sbs-deploy build` takes to choose it."""
        if self.label == self.name:
            return f"--backend {self.name}"
        return f"--backend {self.name} --{'device' if self.module == 'openvino' else 'provider'} {self.executor}"


TENSORRT = Backend(
    name="tensorrt",
    module="tensorrt",
    runtime="tensorrt",
    marker="Builder",
    dialect="trt",
    precisions=("int8", "fp8", "fp16", "fp32"),
    float_type="fp16",
    container_bits=8,
    channel_multiple=16,
    build_needs_gpu=True,
    run_needs_gpu=True,
    install="pip install tensorrt --extra-index-url https://pypi.nvidia.com",
    hint=" (on a Jetson it comes with JetPack: apt install python3-libnvinfer); or use `--backend tensorrt-rtx`, which "
    "builds with no GPU",
)
TENSORRT_RTX = Backend(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    runtime="tensorrt",
    marker="Builder",
    dialect="trt",
    precisions=("int8", "fp8", "fp16", "fp32"),
    float_type="fp16",
    depthwise="fp16",  # INT8 groups are padded from 1 to 4 channels
    container_bits=8,
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=True,
    install="pip install tensorrt-rtx",
)
ONNXRUNTIME = Backend(
    name="onnxruntime",
    module="onnxruntime",
    runtime="onnxruntime",
    marker="InferenceSession",
    dialect="ort",
    precisions=("int8", "fp32"),
    float_type="fp32",
    container_bits=8,
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=False,
    install="pip install onnxruntime",
    hint=", or `pip install onnxruntime-gpu` for NVIDIA GPUs",
    executor="cpu",
    distributions=("onnxruntime", "onnxruntime-gpu"),
)
ONNXRUNTIME_CUDA = replace(
    ONNXRUNTIME,
    executor="cuda",
    dialect="trt",
    precisions=("fp16", "fp32"),  # it computes quantized convolutions in float
    build_needs_gpu=True,
    run_needs_gpu=True,
)
ONNXRUNTIME_TENSORRT = replace(
    ONNXRUNTIME_CUDA,
    executor="tensorrt",
    precisions=("int8", "fp16", "fp32"),
    float_type="fp16",
    channel_multiple=TENSORRT.channel_multiple,
)
ONNXRUNTIME_RTX = replace(
    ONNXRUNTIME_TENSORRT,
    executor="nv-tensorrt-rtx",
    depthwise=TENSORRT_RTX.depthwise,
    channel_multiple=TENSORRT_RTX.channel_multiple,
)
OPENVINO = Backend(
    name="openvino",
    module="openvino",
    runtime="openvino",
    marker="Core",
    dialect="ort",  # the faster one, and the exact one where there is no VNNI
    precisions=("int8", "fp32"),
    float_type="fp32",
    container_bits=8,
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=False,
    install="pip install openvino",
    executor="CPU",
)
OPENVINO_GPU = replace(OPENVINO, executor="GPU", precisions=("int8", "fp16", "fp32"), numbered=True)
OPENVINO_NPU = replace(OPENVINO, executor="NPU", precisions=("int8", "fp16"), numbered=True)
BACKENDS = (TENSORRT, TENSORRT_RTX, ONNXRUNTIME, OPENVINO)
"""In the order in which `--backend auto` tries them."""
EXECUTORS = (*BACKENDS, ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, ONNXRUNTIME_RTX, OPENVINO_GPU, OPENVINO_NPU)
"""Every backend with each of its devices or providers; the usual one of each backend comes first."""
DEFAULT_BACKEND = ONNXRUNTIME
"""Runs exported files on any machine, without a build: what is validated and measured where no engine was built."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A backend and why it was chosen."""

    backend: Backend
    why: str


Importer = Callable[[str], ModuleType]


def import_problem(backend: Backend, importer: Importer = importlib.import_module) -> str | None:
    """Why the backend's module cannot be used here, or None if it can."""
    try:
        module = importer(backend.module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{backend.module} cannot be imported ({' '.join(str(error).split())})"
    if not hasattr(module, backend.marker):
        return f"{backend.module} is not installed (only stubs or an empty folder of that name are)"
    present = [name for name in backend.distributions if _installed(name)]
    if len(present) > 1:
        return (
            f"{' and '.join(present)} are both installed, and each overwrote files of the other "
            f"(remove both: `pip uninstall -y {' '.join(present)}`)"
        )
    return None


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_module(backend: Backend) -> ModuleType:
    """The backend's module; SbsError names how to install it."""
    problem = import_problem(backend)
    if problem is None:
        return importlib.import_module(backend.module)
    raise SbsError(f"--backend {backend.name}: {problem}; install it with `{backend.install}`{backend.hint}")


def choose_backend(
    name: str,
    *,
    provider: str | None = None,
    device: str | None = None,
    importer: Importer = importlib.import_module,
    gpu_name: Callable[[], str | None] = clocks.gpu_name,
) -> Choice:
    """The backend of that name; `auto` takes the first that can be built here and says why.

    Args:
        provider: of ONNX Runtime; its CPU's unless given.
        device: of OpenVINO, such as CPU, GPU.1, NPU; the CPU unless given.

    Raises:
        SbsError: the name is unknown, or `auto` finds nothing installed.
    """
    for flag, value, owner in (("--provider", provider, ONNXRUNTIME), ("--device", device, OPENVINO)):
        if value is not None and name != owner.name:
            raise SbsError(f"{flag} {value} belongs to --backend {owner.name}; add that, or leave {flag} out")
    if name != "auto":
        wanted = provider or device or ""
        return Choice(backend=executor_of(name, wanted), why="asked for with --backend")
    reasons: list[str] = []
    for backend in BACKENDS:
        problem = import_problem(backend, importer)
        if problem is None and backend.build_needs_gpu:
            gpu = gpu_name()
            if gpu is None:
                problem = f"{backend.module} builds on a GPU and none was found"
            else:
                return Choice(backend=backend, why=f"{backend.module} is importable and {gpu} is here")
        if problem is None:
            ahead = " and builds ahead of time with no GPU" if backend.run_needs_gpu else ""
            return Choice(backend=backend, why="; ".join((*reasons, f"{backend.module} is importable{ahead}")))
        reasons.append(problem)
    raise SbsError(f"--backend auto found nothing to build with ({'; '.join(reasons)}); run `{ONNXRUNTIME.install}`")


def executor_of(name: str, executor: str = "") -> Backend:
    """The backend of a name, on one of its devices or providers; SbsError names the ones there are."""
    found = [backend for backend in EXECUTORS if backend.name == name]
    if not found:
        known = ", ".join(("auto", *(backend.name for backend in BACKENDS)))
        raise SbsError(f"--backend {name} is not supported; choose one of {known}")
    if not executor:
        return found[0]
    for backend in found:
        if executor.lower() == backend.executor.lower():
            return backend
        if backend.numbered and re.fullmatch(rf"{backend.executor}\.\d+", executor, re.IGNORECASE):
            return replace(backend, executor=executor.upper())
    known = ", ".join(backend.executor for backend in found)
    raise SbsError(f"--backend {name} has no {executor}; choose one of {known}")


def backend_labelled(label: str) -> Backend | None:
    """The backend with that label, or None."""
    for backend in EXECUTORS:
        if label == backend.label:
            return backend
        numbered = re.fullmatch(rf"{backend.label}(\d+)", label)
        if numbered is not None and backend.numbered:
            return replace(backend, executor=f"{backend.executor}.{numbered[1]}")
    return None
