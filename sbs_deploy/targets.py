"""What each target is, what it needs and what it executes, as data.

A target's dialect names the ONNX file it is built from: TensorRT wants int8 with zero-point 0, ONNX Runtime uint8.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from sbs_deploy.bench import clocks
from sbs_train.contract import cost
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan

Dialect = Literal["trt", "ort"]
Precision = Literal["int8", "fp16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One way to execute a plan."""

    name: str
    """As `--target` takes it."""
    module: str
    """Python module that builds and runs engines."""
    marker: str
    """An attribute the real module has; stubs and empty folders of the same name lack it."""
    dialect: Dialect
    precisions: tuple[Precision, ...]
    container_bits: int
    """Narrowest integers a convolution computes in: fewer planned bits save storage, not time."""
    channel_multiple: int
    """INT8 channels are padded to, or slow off, multiples of this."""
    build_needs_gpu: bool
    run_needs_gpu: bool
    install: str
    """Exact command that installs the module."""


TENSORRT = Target(
    name="tensorrt",
    module="tensorrt",
    marker="Builder",
    dialect="trt",
    precisions=("int8", "fp16", "fp32"),
    container_bits=8,
    channel_multiple=16,
    build_needs_gpu=True,
    run_needs_gpu=True,
    install="pip install tensorrt --extra-index-url https://pypi.nvidia.com",
)
TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    marker="Builder",
    dialect="trt",
    precisions=("int8", "fp16", "fp32"),
    container_bits=8,
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=True,
    install="pip install tensorrt-rtx",
)
ONNXRUNTIME = Target(
    name="onnxruntime",
    module="onnxruntime",
    marker="InferenceSession",
    dialect="ort",
    precisions=("int8", "fp32"),
    container_bits=8,
    channel_multiple=4,
    build_needs_gpu=False,
    run_needs_gpu=False,
    install="pip install onnxruntime",
)
TARGETS = (TENSORRT, TENSORRT_RTX, ONNXRUNTIME)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A target and why it was chosen."""

    target: Target
    why: str


Importer = Callable[[str], ModuleType]


def import_problem(target: Target, importer: Importer = importlib.import_module) -> str | None:
    """Why the target's module cannot be used here, or None if it can."""
    try:
        module = importer(target.module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{target.module} cannot be imported ({' '.join(str(error).split())})"
    if not hasattr(module, target.marker):
        return f"{target.module} is not installed (only stubs or an empty folder of that name are)"
    return None


def require_module(target: Target) -> ModuleType:
    """The target's module; SbsError names how to install it."""
    problem = import_problem(target)
    if problem is None:
        return importlib.import_module(target.module)
    other = "; or use `--target tensorrt-rtx`, which builds with no GPU" if target is TENSORRT else ""
    jetson = " (on a Jetson it comes with JetPack: apt install python3-libnvinfer)" if target is TENSORRT else ""
    raise SbsError(f"--target {target.name}: {problem}; install it with `{target.install}`{jetson}{other}")


def choose_target(
    name: str,
    *,
    importer: Importer = importlib.import_module,
    gpu_name: Callable[[], str | None] = clocks.gpu_name,
) -> Choice:
    """The target of that name; `auto` takes the first that can be built here and says why.

    Raises:
        SbsError: the name is unknown, or `auto` finds nothing installed.
    """
    if name != "auto":
        for target in TARGETS:
            if target.name == name:
                return Choice(target=target, why="asked for with --target")
        known = ", ".join(("auto", *(target.name for target in TARGETS)))
        raise SbsError(f"--target {name} is not supported yet; choose one of {known}")
    reasons: list[str] = []
    for target in TARGETS:
        problem = import_problem(target, importer)
        if problem is None and target.build_needs_gpu:
            gpu = gpu_name()
            if gpu is None:
                problem = f"{target.module} builds on a GPU and none was found"
            else:
                return Choice(target=target, why=f"{target.module} is importable and {gpu} is here")
        if problem is None:
            ahead = " and builds ahead of time with no GPU" if target.run_needs_gpu else ""
            return Choice(target=target, why="; ".join((*reasons, f"{target.module} is importable{ahead}")))
        reasons.append(problem)
    raise SbsError(f"--target auto found nothing to build with ({'; '.join(reasons)}); run `{ONNXRUNTIME.install}`")


def deployable_bops(plan: Plan) -> float:
    """Bit-Operations of one image as INT8 hardware executes the plan: no convolution computes below 8 bits.

    A layer with a float weight or input runs wholly in float, counted at 32 bits.
    """
    total = 0.0
    for layer in plan.layers:
        macs = cost.kept_macs(
            float(layer.macs),
            plan.kept_fraction(layer.group_in),
            plan.kept_fraction(layer.group_out),
            depthwise=layer.kind == "depthwise",
        )
        if layer.quantized:
            bits_w, bits_a = cost.deployable_bits(layer.bits_w), cost.deployable_bits(layer.bits_a)
        else:
            bits_w = bits_a = cost.FP32_BITS
        total += cost.bops(macs, bits_w, bits_a)
    return total
