"""What of a run can be measured: engines that were built, the INT8 model, and its float controls.

What cannot run here keeps its place, with the reason: a failure is never a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.engine.base import Engine, check_built_for
from sbs_deploy.targets import ONNXRUNTIME, OPENVINO, Target, deployable_bops, require_module, target_labelled
from sbs_train.contract import cost, rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir

DENSE = "fp32"
SLIM = "slim"
PLANNED = ("int8", "fp8")
"""Precisions of engines that execute the plan; the others are controls."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file to measure, or the reason why it cannot be."""

    path: Path
    label: str
    """For tables: int8, fp32 (dense), fp32 (slim)."""
    backend: str
    precision: str
    control: bool
    predicted_bops: float
    open: Callable[[], Engine]


def find_artifacts(run: RunDir, plan: Plan, *, against: tuple[str, ...], threads: int) -> list[Artifact]:
    """Everything to measure, the controls first.

    The INT8 model runs as the engine that was built, or straight from its ONNX file where none was. Engines of ONNX
    Runtime's providers and of OpenVINO have controls of their own, which run as they do.
    """
    bops = predicted_bops(plan)
    built = [path for path in sorted(run.engines.glob("model.*.*.*")) if path.suffix in (".engine", ".onnx")]
    targets = {path: target_labelled(path.name.split(".")[2]) for path in built}
    runners = [ONNXRUNTIME]
    runners += [t for t in targets.values() if t is not None and t.name in (ONNXRUNTIME.name, OPENVINO.name)]
    found = []
    for target in dict.fromkeys(runners):
        found.append(_control(run, target, run.model_fp32, "fp32 dense", bops[DENSE], threads))
        if SLIM in against:
            found.append(_control(run, target, run.model_slim, "fp32 slim", bops[SLIM], threads))
    if "fp16" in against and not list(run.engines.glob("model.fp16.*")):
        found.append(_refused(run.model_slim, "fp16 slim", "onnxruntime has no FP16 convolutions on a CPU", bops[SLIM]))
    engines = [_engine(path, targets[path], run, bops, threads) for path in built]
    if not any(one.backend == ONNXRUNTIME.label and one.precision == "int8" for one in engines):
        found.append(_control(run, ONNXRUNTIME, run.model_ort, "int8", bops["int8"], threads))
    return found + engines


def predicted_bops(plan: Plan) -> dict[str, float]:
    """Bit-Operations of one image by what executes it: fp32 (dense), slim (pruned, float) and int8 (deployable)."""
    slim = sum(
        cost.bops(
            cost.kept_macs(
                float(layer.macs),
                plan.kept_fraction(layer.group_in),
                plan.kept_fraction(layer.group_out),
                depthwise=layer.kind == "depthwise",
            ),
            cost.FP32_BITS,
            cost.FP32_BITS,
        )
        for layer in plan.layers
    )
    return {DENSE: plan.cost.bops_fp32, SLIM: slim, "int8": deployable_bops(plan)}


def open_engine(path: Path, target: Target, precision: str, threads: int, *, built: bool) -> Engine:
    """The file on the target; `built` engines come with a directory of what was compiled.

    Raises:
        SbsError: the target is not installed or has no device here, or the file is damaged.
    """
    if target.name == ONNXRUNTIME.name:
        from sbs_deploy.engine.onnxruntime import OnnxRuntimeEngine, cache_of
        from sbs_deploy.engine.providers import provider_of

        provider, cache = provider_of(target), cache_of(path) if built else None
        return OnnxRuntimeEngine(path, precision=precision, threads=threads, provider=provider, cache=cache)
    if target.name == OPENVINO.name:
        from sbs_deploy.engine import openvino

        kept = openvino.cache_of(path) if built else None
        return openvino.OpenVinoEngine(path, precision=precision, device=target.executor, threads=threads, cache=kept)
    from sbs_deploy.engine.trt_runtime import TensorRTEngine

    return TensorRTEngine(path, target=target, precision=precision)


def _control(run: RunDir, target: Target, path: Path, label: str, bops: float, threads: int) -> Artifact:
    """A file of the export, straight from its ONNX: a float control, or the INT8 model."""
    precision = "int8" if label == "int8" else "fp32"

    def open_control() -> Engine:
        _check_plan(path, rundir.require_whole(path, "sbs-deploy export"), rundir.sha256_of(run.plan))
        return open_engine(path, target, precision, threads, built=False)

    return Artifact(
        path=path,
        label=label,
        backend=target.label,
        precision=precision,
        control=label != "int8",
        predicted_bops=bops,
        open=open_control,
    )


def _check_plan(path: Path, manifest: rundir.Manifest, plan_sha256: str) -> None:
    """A file of another plan would put its time beside this plan's predictions."""
    if manifest.made_from.get("plan.json", plan_sha256) != plan_sha256:
        raise SbsError(f"{path.name} was made from another plan; run `sbs-deploy build` again")


def _refused(path: Path, label: str, why: str, bops: float) -> Artifact:
    def open_nothing() -> Engine:
        raise SbsError(why)

    return Artifact(
        path=path,
        label=label,
        backend=ONNXRUNTIME.label,
        precision="fp16",
        control=True,
        predicted_bops=bops,
        open=open_nothing,
    )


def _engine(path: Path, target: Target | None, run: RunDir, bops: dict[str, float], threads: int) -> Artifact:
    """A built engine; opening it checks that it was made from the files that lie here now, and for this machine."""
    precision, label = path.name.split(".")[1:3]

    def open_built() -> Engine:
        if target is None:
            raise SbsError(f"{path.name}: no target is called {label}; build it again with `sbs-deploy build`")
        manifest = rundir.require_whole(path, f"sbs-deploy build --engine {precision} {target.flags}")
        _check_plan(path, manifest, rundir.sha256_of(run.plan))
        for source in (run.model_ort, run.model_trt, run.model_slim, run.codes):
            if source.name in manifest.made_from and manifest.made_from[source.name] != rundir.sha256_of(source):
                raise SbsError(f"{path.name} was built from another {source.name}; run `sbs-deploy build` again")
        _check_machine(path, manifest, target, f"sbs-deploy build --engine {precision} {target.flags}")
        return open_engine(path, target, precision, threads, built=True)

    return Artifact(
        path=path,
        label=precision if precision in PLANNED else f"{precision} slim",
        backend=label,
        precision=precision,
        control=precision not in PLANNED,
        predicted_bops=bops["int8" if precision in PLANNED else SLIM],
        open=open_built,
    )


def _check_machine(path: Path, manifest: rundir.Manifest, target: Target, command: str) -> None:
    """Refuse an engine of another processor, device or version; SbsError names the command that builds it again."""
    module = require_module(target)
    version = {target.module: str(module.__version__)}
    if target.name == ONNXRUNTIME.name:
        from sbs_deploy.engine.onnxruntime import machine
        from sbs_deploy.engine.providers import provider_of

        check_built_for(path, manifest, machine(provider_of(target)) | version, command)
    elif target.name == OPENVINO.name:
        from sbs_deploy.engine.openvino import device_name

        check_built_for(path, manifest, {"device_name": device_name(target.executor)} | version, command)
    else:
        from sbs_deploy.engine.hardware import engine_problem, this_hardware

        problem = engine_problem(
            manifest.details, manifest.versions, module.__name__, module.__version__, this_hardware()
        )
        if problem is not None:
            raise SbsError(f"{path.name} cannot run: {problem}; run `{command}` here")
