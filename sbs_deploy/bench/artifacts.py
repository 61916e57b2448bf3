"""What of a run can be measured: engines that were built, the INT8 model, and its float controls.

What cannot run here keeps its place, with the reason: a failure is never a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.bench import clocks
from sbs_deploy.engine.base import Engine
from sbs_deploy.targets import ONNXRUNTIME, TARGETS, deployable_bops
from sbs_train.contract import cost, rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir

DENSE = "fp32"
SLIM = "slim"


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

    The INT8 model runs as the engine that was built, or straight from its ONNX file where none was.
    """
    bops = predicted_bops(plan)
    found = [_onnx(run, run.model_fp32, "fp32 dense", "fp32", bops[DENSE], threads, control=True)]
    if SLIM in against:
        found.append(_onnx(run, run.model_slim, "fp32 slim", "fp32", bops[SLIM], threads, control=True))
    if "fp16" in against and not list(run.engines.glob("model.fp16.*")):
        found.append(_refused(run.model_slim, "fp16 slim", "onnxruntime has no FP16 convolutions on a CPU", bops[SLIM]))
    built = [_engine(path, run, bops, threads) for path in sorted(run.engines.glob("model.*.*.*")) if _is_engine(path)]
    if not any(one.backend == ONNXRUNTIME.name and one.precision == "int8" for one in built):
        found.append(_onnx(run, run.model_ort, "int8", "int8", bops["int8"], threads, control=False))
    return found + built


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


def _is_engine(path: Path) -> bool:
    return path.suffix in (".engine", ".onnx")


def _onnx(run: RunDir, path: Path, label: str, precision: str, bops: float, threads: int, *, control: bool) -> Artifact:
    def open_engine() -> Engine:
        from sbs_deploy.engine.onnxruntime import OnnxRuntimeEngine

        _check_plan(path, rundir.require_whole(path, "sbs-deploy export"), rundir.sha256_of(run.plan))
        return OnnxRuntimeEngine(path, precision=precision, threads=threads)

    return Artifact(
        path=path,
        label=label,
        backend=ONNXRUNTIME.name,
        precision=precision,
        control=control,
        predicted_bops=bops,
        open=open_engine,
    )


def _check_plan(path: Path, manifest: rundir.Manifest, plan_sha256: str) -> None:
    """A file of another plan would put its time beside this plan's predictions."""
    if manifest.made_from.get("plan.json", plan_sha256) != plan_sha256:
        raise SbsError(f"{path.name} was made from another plan; run `sbs-deploy build` again")


def _refused(path: Path, label: str, why: str, bops: float) -> Artifact:
    def open_engine() -> Engine:
        raise SbsError(why)

    return Artifact(
        path=path,
        label=label,
        backend=ONNXRUNTIME.name,
        precision="fp16",
        control=True,
        predicted_bops=bops,
        open=open_engine,
    )


def _engine(path: Path, run: RunDir, bops: dict[str, float], threads: int) -> Artifact:
    """A built engine; opening it checks that it was made from the files that lie here now."""
    precision, backend = path.name.split(".")[1:3]

    def open_engine() -> Engine:
        manifest = rundir.require_whole(path, "sbs-deploy build")
        _check_plan(path, manifest, rundir.sha256_of(run.plan))
        for source in (run.model_ort, run.model_trt, run.model_slim):
            if manifest.made_from.get(source.name, "") not in ("", rundir.sha256_of(source)):
                raise SbsError(f"{path.name} was built from another {source.name}; run `sbs-deploy build` again")
        if backend == ONNXRUNTIME.name:
            if manifest.details.get("processor", clocks.cpu_model()) != clocks.cpu_model():
                raise SbsError(f"{path.name} was built for another processor; run `sbs-deploy build` here")
            from sbs_deploy.engine.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path, precision=precision, threads=threads)
        from sbs_deploy.engine.trt_runtime import TensorRTEngine

        target = next((one for one in TARGETS if one.name == backend), None)
        if target is None:
            raise SbsError(f"{path.name}: no target is called {backend}; build it again with `sbs-deploy build`")
        return TensorRTEngine(path, target=target, precision=precision)

    return Artifact(
        path=path,
        label=precision if precision == "int8" else f"{precision} slim",
        backend=backend,
        precision=precision,
        control=precision != "int8",
        predicted_bops=bops["int8" if precision == "int8" else SLIM],
        open=open_engine,
    )
