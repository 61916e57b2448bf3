"""Artifacts of a run that can be measured: built engines, the INT8 model, and their float controls.

An artifact that cannot run here stays in the list, with the reason.
"""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.runtime import build_engine, open_engine, runtime_of
from sbs_deploy.backends.spec import DEFAULT_BACKEND, Backend, Choice, backend_labelled
from sbs_deploy.engines.controls import Control, control_engine, wanted_controls, write_graph
from sbs_deploy.engines.rebuild import rebuild_command, source_of
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir

DENSE = "fp32"
SLIM = "slim"
PLANNED = ("int8", "fp8")
"""Precisions of engines that execute the plan; engines of other precisions are controls."""

Opener = Callable[[int, contextlib.ExitStack], Engine]
"""Opens build number 0, the file, or makes a new build; the stack closes the engine and removes a new build."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file to measure, or the reason why it cannot be measured."""

    path: Path
    label: str
    """Name in tables: int8, fp32 dense, fp16 slim."""
    backend: str = DEFAULT_BACKEND.label
    precision: str
    control: bool
    on_gpu: bool = False
    predicted_bops: float
    open: Opener
    source: Callable[[], Path]
    """Returns the artifact's ONNX graph; SbsError if the file is gone."""


def find_artifacts(run: RunDir, plan: Plan, *, against: tuple[str, ...], threads: int) -> list[Artifact]:
    """All artifacts to measure, controls first.

    The INT8 model runs as a built engine, or without one directly from its ONNX file. Every backend with an engine has
    controls of its own, with the settings of that engine.
    """
    bops = predicted_bops(plan)
    built = built_engines(run)
    backends = {path: backend_labelled(path.name.split(".")[2]) for path in built}
    runners = dict.fromkeys([DEFAULT_BACKEND, *(backend for backend in backends.values() if backend is not None)])
    have = {tuple(path.name.split(".")[1:3]) for path in built}
    found = []
    plans_first = sorted(built, key=lambda path: _place(path.name.split(".")[1]))
    for backend in runners:
        details = next((_details(path) for path in plans_first if backends[path] == backend), {})
        for control in wanted_controls(backend, against):
            if control.straight or control.network == "dense" or (control.precision, backend.label) not in have:
                found.append(_control(run, control, details, bops, threads))
    if "fp16" in against and not any("fp16" in backend.precisions for backend in runners):
        found.append(_refused(run, f"{DEFAULT_BACKEND.name} has no FP16 convolutions on a CPU", bops[DENSE]))
    engines = [_engine(path, backends[path], run, bops, threads) for path in built]
    if ("int8", DEFAULT_BACKEND.label) not in have:
        found.append(_int8_model(run, bops, threads))
    return found + engines


def engine_path(run: RunDir, precision: str, choice: Choice) -> Path:
    """Path engines/model.PRECISION.BACKEND.engine; .onnx for backends that run ONNX files."""
    return run.engines / f"model.{precision}.{choice.backend.label}.{runtime_of(choice.backend).suffix}"


def built_engines(run: RunDir, precision: str = "*") -> list[Path]:
    """The files of a run's engines, sorted by name."""
    return [path for path in sorted(run.engines.glob(f"model.{precision}.*.*")) if path.suffix in (".engine", ".onnx")]


def predicted_bops(plan: Plan) -> dict[str, float]:
    """Bit-Operations of one image by network: fp32 (dense), slim (pruned, float) and int8 (deployable)."""
    return {DENSE: plan.cost.bops_fp32, SLIM: plan.slim_bops(), "int8": plan.deployable_bops()}


def _place(precision: str) -> int:
    """Rank of engines whose settings controls take: the plan's engines come first, INT8 before FP8."""
    return PLANNED.index(precision) if precision in PLANNED else len(PLANNED)


def _details(path: Path) -> dict[str, Any]:
    """Details of an engine's manifest; empty if it is damaged, which the engine's row reports."""
    with contextlib.suppress(SbsError):
        return rundir.read_manifest(path).details
    return {}


def _control(run: RunDir, control: Control, details: dict[str, Any], bops: dict[str, float], threads: int) -> Artifact:
    def open_control(build: int, stack: contextlib.ExitStack) -> Engine:
        _check_plan(control.exported(run), rundir.require_whole(control.exported(run), "sbs-deploy export"), run)
        path = stack.enter_context(control_engine(control, run, details, build))
        return stack.enter_context(open_engine(path, control.backend, control.precision, threads, built=False))

    return Artifact(
        path=control.path(run),
        label=control.label,
        backend=control.backend.label,
        precision=control.precision,
        control=True,
        on_gpu=control.backend.run_needs_gpu,
        predicted_bops=bops[DENSE if control.network == "dense" else SLIM],
        open=open_control,
        source=lambda: write_graph(control, run),
    )


def _int8_model(run: RunDir, bops: dict[str, float], threads: int) -> Artifact:
    """The INT8 model, run directly from its ONNX file."""
    path = DEFAULT_BACKEND.model(run)

    def open_model(build: int, stack: contextlib.ExitStack) -> Engine:
        _check_plan(path, rundir.require_whole(path, "sbs-deploy export"), run)
        return stack.enter_context(open_engine(path, DEFAULT_BACKEND, "int8", threads, built=False))

    return Artifact(
        path=path,
        label="int8",
        precision="int8",
        control=False,
        predicted_bops=bops["int8"],
        open=open_model,
        source=lambda: path,
    )


def _check_plan(path: Path, manifest: rundir.Manifest, run: RunDir, command: str = "sbs-deploy build") -> None:
    """SbsError for a file of another plan, whose time would stand beside this plan's predictions."""
    plan_sha256 = rundir.sha256_of(run.plan)
    if manifest.made_from.get(run.plan.name, plan_sha256) != plan_sha256:
        raise SbsError(f"{path.name} was made from another plan; run `{command}` again")


def _refused(run: RunDir, why: str, bops: float) -> Artifact:
    def open_nothing(build: int, stack: contextlib.ExitStack) -> Engine:
        raise SbsError(why)

    return Artifact(
        path=run.model_fp32,
        label="fp16 dense",
        precision="fp16",
        control=True,
        predicted_bops=bops,
        open=open_nothing,
        source=lambda: run.model_fp32,
    )


def _engine(path: Path, backend: Backend | None, run: RunDir, bops: dict[str, float], threads: int) -> Artifact:
    """A built engine; opening it checks that it was made from the current files and for this machine."""
    precision, label = path.name.split(".")[1:3]
    command = f"sbs-deploy build --engine {precision} {backend.flags if backend else ''}".rstrip()

    def open_built(build: int, stack: contextlib.ExitStack) -> Engine:
        if backend is None:
            raise SbsError(f"{path.name}: no backend is called {label}; build it again with `sbs-deploy build`")
        manifest = rundir.require_whole(path, command)
        again = rebuild_command(path, manifest, backend, run.root)
        _check_plan(path, manifest, run, again)
        for source in (run.model_ort, run.model_trt, run.model_slim, run.codes):
            if source.name in manifest.made_from and manifest.made_from[source.name] != rundir.sha256_of(source):
                raise SbsError(f"{path.name} was built from another {source.name}; run `{again}`")
        runtime_of(backend).check_fits(path, manifest, backend, again)
        opened = path
        if build:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            source = source_of(run, path, manifest, again)
            like = runtime_of(backend).request_like(backend, precision, manifest.details)
            opened = build_engine(source, folder / path.name, like, made_from={}).path
        return stack.enter_context(open_engine(opened, backend, precision, threads, built=True))

    def built_from() -> Path:
        manifest = rundir.read_manifest(path)
        again = command if backend is None else rebuild_command(path, manifest, backend, run.root)
        return source_of(run, path, manifest, again)

    return Artifact(
        path=path,
        label=precision if precision in PLANNED else f"{precision} slim",
        backend=label,
        precision=precision,
        control=precision not in PLANNED,
        on_gpu=backend is not None and backend.run_needs_gpu,
        predicted_bops=bops["int8" if precision in PLANNED else SLIM],
        open=open_built,
        source=built_from,
    )
