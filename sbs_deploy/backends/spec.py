"""Properties of each backend as data: its module, dialect, precisions and devices.

A backend's dialect names the ONNX file that engines are built from: TensorRT needs int8 with zero-point 0, ONNX Runtime
uint8.
"""

import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from sbs_deploy.machine import clocks
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir

BackendName = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
Precision = Literal["int8", "fp8", "fp16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to execute a plan."""

    name: BackendName
    """The backend's name for `--backend`."""
    module: str
    """Python module that builds and runs engines."""
    runtime: str
    """Folder beside this file that implements the backend."""
    marker: str
    """An attribute of the real module, which stubs and empty folders of its name lack."""
    dialect: Literal["trt", "ort"]
    """Name of the Q/DQ dialect that the backend executes, see `export.dialects`."""
    precisions: tuple[Precision, ...]
    float_type: Literal["fp16", "fp32"]
    """Type in which layers that are not quantized are computed."""
    container_bits: int
    """Narrowest integers of convolutions: fewer planned bits save storage, not time."""
    depthwise: Literal["int8", "fp16"] = "int8"
    """Default type of depthwise convolutions, without `--depthwise`."""
    outputs: Literal["none", "all"] = "none"
    """Default of `--outputs`: all where kernels are integer only if their outputs are quantized too."""
    channel_multiple: int
    """Multiple of channels that INT8 kernels compute in."""
    build_needs_gpu: bool
    run_needs_gpu: bool
    install: str
    """Command that installs the module."""
    hint: str = ""
    """Advice that errors add to the install command."""
    settings: tuple[str, ...] = ()
    """Supported fields of `request.BuilderSettings`; a backend without any takes every batch size."""
    device_flag: Literal["", "provider", "device"] = ""
    """Flag that chooses the backend's device; empty if it has one device only."""
    device: str = ""
    """Value of `device_flag`."""
    numbered: bool = False
    """Whether a machine may have several of these devices, told apart by a number: GPU.1."""
    distributions: tuple[str, ...] = ()
    """Packages with the module; only one may be installed, as they overwrite each other's files."""

    @property
    def label(self) -> str:
        """Name in file names and tables: onnxruntime, onnxruntime-cuda, openvino-gpu0."""
        usual = self.device.lower() in ("", "cpu")
        return self.name if usual else f"{self.name}-{self.device.lower().replace('.', '')}"

    @property
    def on_cpu(self) -> bool:
        """Whether engines run on the processor, in this process."""
        return self.device.lower() == "cpu"

    @property
    def flags(self) -> str:
        """Flags of `sbs-deploy build` that choose the backend."""
        usual = self.label == self.name
        return f"--backend {self.name}" + ("" if usual else f" --{self.device_flag} {self.device}")

    def model(self, run: RunDir) -> Path:
        """The quantized ONNX file of a run in the backend's dialect."""
        return run.deploy / f"model.{self.dialect}.onnx"


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
    settings=("optimization_level", "workspace_mib", "hardware_compatibility", "version_compatible", "refit"),
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
    settings=("optimization_level", "workspace_mib"),  # it ignores all others (its release notes)
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
    outputs="all",
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=False,
    install="pip install onnxruntime",
    hint=", or `pip install onnxruntime-gpu` for NVIDIA GPUs",
    device_flag="provider",
    device="cpu",
    distributions=("onnxruntime", "onnxruntime-gpu"),
)
ONNXRUNTIME_CUDA = replace(
    ONNXRUNTIME,
    device="cuda",
    dialect="trt",
    outputs="none",
    precisions=("fp16", "fp32"),  # it computes quantized convolutions in float
    build_needs_gpu=True,
    run_needs_gpu=True,
)
ONNXRUNTIME_TENSORRT = replace(
    ONNXRUNTIME_CUDA,
    device="tensorrt",
    precisions=("int8", "fp16", "fp32"),
    float_type="fp16",
    channel_multiple=TENSORRT.channel_multiple,
)
ONNXRUNTIME_RTX = replace(
    ONNXRUNTIME_TENSORRT,
    device="nv-tensorrt-rtx",
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
    device_flag="device",
    device="CPU",
)
OPENVINO_GPU = replace(OPENVINO, device="GPU", precisions=("int8", "fp16", "fp32"), numbered=True)
OPENVINO_NPU = replace(OPENVINO, device="NPU", precisions=("int8", "fp16"), numbered=True)
BACKENDS = (TENSORRT, TENSORRT_RTX, ONNXRUNTIME, OPENVINO)
"""All backends on their usual devices, in the order of `--backend auto`."""
DEVICES = (*BACKENDS, ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, ONNXRUNTIME_RTX, OPENVINO_GPU, OPENVINO_NPU)
"""All backends on all devices; the usual device of each backend comes first."""
DEFAULT_BACKEND = ONNXRUNTIME
"""Backend that runs exported files on any machine without a build; the default of validation and measurement."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A backend, and the reason of its choice."""

    backend: Backend
    why: str


def import_problem(backend: Backend) -> str | None:
    """Why the backend's module cannot be used here, or None if it can."""
    try:
        module = importlib.import_module(backend.module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{backend.module} cannot be imported ({' '.join(str(error).split())})"
    if not hasattr(module, backend.marker):
        return f"{backend.module} is not installed (only stubs or an empty folder of that name are)"
    present = [name for name in backend.distributions if installed_version(name) is not None]
    if len(present) > 1:
        return (
            f"{' and '.join(present)} are both installed, and each overwrote files of the other "
            f"(remove both: `pip uninstall -y {' '.join(present)}`)"
        )
    return None


def installed_version(distribution: str) -> str | None:
    """Version of a package; None if not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def require_module(backend: Backend) -> ModuleType:
    """Import the backend's module; SbsError names the install command."""
    problem = import_problem(backend)
    if problem is None:
        return importlib.import_module(backend.module)
    raise SbsError(f"--backend {backend.name}: {problem}; install it with `{backend.install}`{backend.hint}")


def choose_backend(name: str, *, provider: str | None = None, device: str | None = None) -> Choice:
    """The backend of that name; `auto` takes the first that can be built here and says why.

    Args:
        provider: execution provider of ONNX Runtime; None for the CPU's.
        device: device of OpenVINO, such as CPU, GPU.1, NPU; None for the CPU.

    Raises:
        SbsError: the name is unknown, or `auto` finds nothing installed.
    """
    for flag, value, owner in (("--provider", provider, ONNXRUNTIME), ("--device", device, OPENVINO)):
        if value is not None and name != owner.name:
            raise SbsError(f"{flag} {value} belongs to --backend {owner.name}; add that, or leave {flag} out")
    if name != "auto":
        return Choice(backend=backend_named(name, provider or device or ""), why="asked for with --backend")
    reasons: list[str] = []
    for backend in BACKENDS:
        problem = import_problem(backend)
        if problem is None and backend.build_needs_gpu:
            gpu = clocks.gpu_name()
            if gpu is None:
                problem = f"{backend.module} builds on a GPU and none was found"
            else:
                return Choice(backend=backend, why=f"{backend.module} is importable and {gpu} is here")
        if problem is None:
            ahead = " and builds ahead of time with no GPU" if backend.run_needs_gpu else ""
            return Choice(backend=backend, why="; ".join((*reasons, f"{backend.module} is importable{ahead}")))
        reasons.append(problem)
    raise SbsError(
        f"--backend auto found nothing to build with ({'; '.join(reasons)}); run `{DEFAULT_BACKEND.install}`"
    )


def backend_named(name: str, device: str = "") -> Backend:
    """The backend of a name, on one of its devices; SbsError lists the devices."""
    found = [backend for backend in DEVICES if backend.name == name]
    if not found:
        known = ", ".join(("auto", *(backend.name for backend in BACKENDS)))
        raise SbsError(f"--backend {name} is not supported; choose one of {known}")
    if not device:
        return found[0]
    for backend in found:
        if device.lower() == backend.device.lower():
            return backend
        if backend.numbered and re.fullmatch(rf"{backend.device}\.\d+", device, re.IGNORECASE):
            return replace(backend, device=device.upper())
    known = ", ".join(backend.device for backend in found)
    raise SbsError(f"--backend {name} has no {device}; choose one of {known}")


def reader_of(dialect: str) -> Backend:
    """The first backend that executes a dialect."""
    return next(backend for backend in BACKENDS if backend.dialect == dialect)


def backend_labelled(label: str) -> Backend | None:
    """The backend with a label; None if unknown."""
    for backend in DEVICES:
        if label == backend.label:
            return backend
        numbered = re.fullmatch(rf"{backend.label}(\d+)", label)
        if numbered is not None and backend.numbered:
            return replace(backend, device=f"{backend.device}.{numbered[1]}")
    return None
