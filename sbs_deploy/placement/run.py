"""Placement of a run: measure where the backend can run here, else keep every layer as planned and say why."""

import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sbs_deploy.backends.runtime import runtime_of
from sbs_deploy.backends.spec import require_module
from sbs_deploy.build import BuildOptions, Placed, make_request
from sbs_deploy.engines.artifacts import PLANNED
from sbs_deploy.export.codes import load_codes
from sbs_deploy.export.pipeline import Progress
from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import speedup
from sbs_deploy.measure.run import bench_inputs
from sbs_deploy.placement.bench import EngineBench, Job, form_of
from sbs_deploy.placement.candidates import CHOICES, forms
from sbs_deploy.placement.choose import Choice, choose
from sbs_deploy.placement.words import summary
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import ASKED, MINUTES, AgainstControl, FloatLayer, Placement, TimedGraph
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir

FORMAT = "3"
"""Version of the measurement; raise it when what was measured before no longer counts."""
TOLERANCE = 0.02
"""Part by which an engine may be slower than a control."""
LONGEST_MINUTES = 24 * 60.0
SHOWN = 12
"""Most graphs that the record lists."""


@dataclass(frozen=True, kw_only=True)
class PlacementSettings:
    """Settings of a placement; SbsError if one is out of range."""

    mode: Literal["measured", "plan"] | None = None
    """None: measured where the backend can run here."""
    minutes: float = MINUTES
    threads: int = 1
    free: tuple[str, ...] = tuple(CHOICES)
    """Options of the plan's graph that may be chosen."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and 0 < self.minutes <= LONGEST_MINUTES):
            raise SbsError(f"--placement-minutes {self.minutes:g} must be above 0, and at most {LONGEST_MINUTES:g}")
        if self.threads < 1:
            raise SbsError(f"--threads {self.threads} must be at least 1")


def check_placement(options: BuildOptions, settings: PlacementSettings, *, batch_given: bool) -> None:
    """Refuse settings that do not fit together, or that need another machine, before any work.

    Args:
        batch_given: whether the user chose the batch size.

    Raises:
        SbsError: names the setting and the remedy.
    """
    backend, float_engine = options.choice.backend, options.precision not in PLANNED
    if settings.mode == "measured":
        if float_engine:
            raise SbsError(f"--placement measured: --engine {options.precision} quantizes nothing; leave it out")
        try:
            runtime_of(backend).require_device(backend)
        except SbsError as error:
            raise SbsError(
                f"--placement measured: {error}; build where {backend.name} runs, or leave it out"
            ) from error
    if batch_given and not backend.settings and (settings.mode == "plan" or float_engine):
        raise SbsError(
            f"--batch-opt: {backend.name} takes any batch size, and only placement measures one; leave it out"
        )


def place_run(run: RunDir, options: BuildOptions, progress: Progress, settings: PlacementSettings) -> Placed:
    """The graph that an engine of the plan is built from.

    Raises:
        SbsError: a file of the run is damaged, or the backend refuses the plan's graph.
    """
    backend, plan = options.choice.backend, load_plan(run.plan)
    usual = options.legalisation(plan)
    why = _obstacle(options) if settings.mode is None else ASKED if settings.mode == "plan" else ""
    if why:
        progress(f"placement: every layer as planned ({why})")
        return Placed(legalisation=usual, placement=Placement(mode="plan", why=why))
    exact: dict[str, Any] = {name: CHOICES[name][0] for name in settings.free}
    base = replace(usual, **exact)
    others = sorted(forms(base, settings.free, backend, plan), key=lambda form: form != usual)
    quantized = load_codes(run.codes).layers
    job = Job(
        run=run,
        base=base,
        request=make_request(run, options),
        threads=settings.threads,
        minutes=settings.minutes,
        layers=tuple(layer.name for layer in plan.layers),
        batch=options.batches.opt,
        inputs=bench_inputs(run, plan, options.batches.opt),
    )
    trials = run.deploy / "placement" / f"{options.precision}.{backend.label}.{_key(job)[:12]}.json"
    order = [layer.name for layer in plan.layers if layer.name in quantized]
    depthwise = {layer.name for layer in plan.layers if layer.kind == "depthwise"} & set(order)
    progress(f"placement: {len(order)} quantized layers on {backend.label}, at most {settings.minutes:g} minutes")
    with tempfile.TemporaryDirectory() as folder:
        bench = EngineBench(job, trials, Path(folder), progress)
        choice = choose(bench, base, others, order, depthwise)
    placement = _record(choice, job, len(order)).model_copy(update={"free": list(settings.free)})
    for sentence in summary(placement):
        progress(f"placement: {sentence}")
    return Placed(legalisation=choice.graph, placement=placement)


def _obstacle(options: BuildOptions) -> str:
    """Why nothing can be measured here; empty if it can."""
    if options.precision not in PLANNED:
        return f"--engine {options.precision} is float"
    try:
        require_module(options.choice.backend)
        runtime_of(options.choice.backend).require_device(options.choice.backend)
    except SbsError as error:
        return f"{options.choice.backend.label} cannot run here: {error}"
    return ""


def _key(job: Job) -> str:
    """Hash of everything that a measurement depends on."""
    run, backend = job.run, job.request.backend
    files = (run.plan, run.model_slim, run.codes, run.model_fp32, run.golden)
    return rundir.hash_of(
        {
            "format": FORMAT,
            "files": {path.name: rundir.sha256_of(run.require(path, "sbs-deploy export")) for path in files},
            "base": asdict(job.base),
            "backend": [backend.label, str(require_module(backend).__version__)],
            "depends": runtime_of(backend).depends_on(job.request),
            "machine": [clocks.cpu_model(), *clocks.vector_flags()],
            "run": [job.threads, job.batch],
        }
    )


def _record(choice: Choice, job: Job, quantized: int) -> Placement:
    own = choice.final[choice.graph]
    own_ms = own.latency().p50_ms
    controls = []
    for label, found in choice.final.items():
        if isinstance(label, str):
            ratio, *interval = speedup(found, own)
            # By the ratio inside rounds, so that both numbers tell the same.
            controls.append(AgainstControl(control=label, ms=own_ms * ratio, speed=ratio, interval=interval))
    fastest = min(controls, key=lambda one: one.speed, default=None)
    base_ms = own_ms * choice.speeds[choice.graph]
    timed = sorted(choice.speeds.items(), key=lambda item: -item[1])
    listed = [item for at, item in enumerate(timed) if at < SHOWN or not item[0].float_layers]
    return Placement(
        mode="measured",
        minutes=job.minutes,
        threads=job.threads,
        batch=job.batch,
        clock="process" if job.process_clock else "device",
        form=form_of(choice.graph, job.base),
        ms=own_ms,
        finished=choice.finished,
        float_layers=[
            FloatLayer(layer=name, int8_ms=choice.int8_ms.get(name), float_ms=choice.float_ms.get(name))
            for name in choice.graph.float_layers
        ],
        quantized_layers=quantized,
        timed=[
            TimedGraph(
                form=form_of(graph, job.base),
                float_layers=len(graph.float_layers),
                ms=base_ms / speed,
                speed=speed,
                accurate=graph not in choice.refused,
            )
            for graph, speed in listed
        ],
        controls=controls,
        ship=fastest.control if fastest is not None and fastest.speed < 1 - TOLERANCE else None,
    )
