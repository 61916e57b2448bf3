"""`sbs-deploy build`: export, validate, engine. A stage with unchanged inputs is skipped."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sbs_deploy.archive import INDEX
from sbs_deploy.backends.base import BuiltEngine
from sbs_deploy.backends.products import pairs_saturate
from sbs_deploy.backends.request import (
    DEFAULT_BATCHES,
    DEFAULTS,
    AxisSizes,
    BatchProfile,
    BuilderSettings,
    Request,
)
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import DEVICES, Choice, Precision
from sbs_deploy.engines.artifacts import engine_path
from sbs_deploy.export.golden_file import load_golden, specs_of
from sbs_deploy.export.pipeline import Progress
from sbs_deploy.graph.arrays import open_axes, sizes_of
from sbs_deploy.graph.run import INTERPRETER
from sbs_deploy.legalise.graph import Activations, Legalisation, check_legalisation, legal_model
from sbs_deploy.legalise.outputs import Outputs
from sbs_deploy.validate.run import note_graphs, validate_run, validation_is_current
from sbs_train.contract import rundir
from sbs_train.contract.config import GIVEN, load_config
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import GateFailed, SbsError
from sbs_train.contract.placement import EngineDetails, Placement
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.records import Golden
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Validation

NAMED = 8
"""Most layers in float that the summary of a build names."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of `build`."""

    precision: Precision
    choice: Choice
    batches: BatchProfile = DEFAULT_BATCHES
    """Batch sizes of the engine, for backends that build for given sizes."""
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Least and largest size of every axis of open size, by name, the batch left out; for backends that build for given
    sizes."""
    activations: Activations | None = None
    """As in `Legalisation`. None: promote-8 where outputs are quantized too, unless products of all codes saturate on
    this processor; else exact."""
    outputs: Outputs | None = None
    """As in `Legalisation`; None for the backend's default, if the plan has ranges of outputs."""
    depthwise: Literal["int8", "fp16"] | None = None
    """Type of depthwise convolutions; None for the backend's default."""
    builder: BuilderSettings = DEFAULTS
    """Settings of the backend's builder, if it has settings."""

    def legalisation(self, plan: Plan) -> Legalisation:
        """Options that change the plan's graph."""
        outputs = self.outputs or (self.choice.backend.outputs if self.precision == "int8" and plan.ranges else "none")
        return Legalisation(
            precision=self.precision,
            activations=self.activations or ("exact" if outputs == "none" or pairs_saturate() else "promote-8"),
            outputs=outputs,
            depthwise=self.depthwise or self.choice.backend.depthwise,
        )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The graph that an engine is built from, and how it was chosen."""

    legalisation: Legalisation
    placement: Placement


Placer = Callable[[RunDir, BuildOptions, Progress], Placed]
"""Chooses the graph of an engine of the plan, after the export and validation of a run."""


def build_run(run: RunDir, options: BuildOptions, progress: Progress, place: Placer | None = None) -> BuiltEngine:
    """Make an engine file from a finished training run.

    Args:
        place: chooses which planned layers stay in float; without it every layer is as planned.

    Raises:
        GateFailed: validation did not pass; no engine is written.
        SbsError: an input is missing or damaged, or the backend cannot build here.
    """
    check_precision(options, load_plan(run.require(run.plan, "sbs-train")))
    export_stage(run, progress)
    validate_stage(run, progress)
    _require_quantized(run, options)
    placed = place(run, options, progress) if place is not None else None
    progress(f"engine: {options.precision} for {options.choice.backend.label} ({options.choice.why})")
    built = engine_stage(run, options, placed)
    note_graphs(run)
    details = built.details
    if golden := details.get("legal", {}).get("golden"):
        progress(f"engine: its graph has {graph_words(Golden.model_validate(golden))}")
    if beyond := details.get("legal", {}).get("beyond_float16"):
        progress(f"engine: {len(beyond)} tensors are at the ends of float16 and stay in float32, first {beyond[0]}")
    elif beyond is None and details.get("legal", {}).get("float_type") == "fp16":
        progress(f"engine: whether float16 holds every tensor was not checked; that needs {INTERPRETER}")
    if built.skipped:
        progress(f"engine: {built.path.name} is current")
    elif options.precision in ("int8", "fp8"):
        progress(f"engine: {built.path.name} in {details['build_seconds']:.1f} s, {integer_summary(details)}")
    else:
        progress(f"engine: {built.path.name} in {details['build_seconds']:.1f} s")
    return built


def check_precision(options: BuildOptions, plan: Plan) -> None:
    """SbsError for options that the backend cannot execute, or that the plan lacks ranges for, before any work."""
    backend = options.choice.backend
    if options.precision not in backend.precisions:
        able = [one for one in DEVICES if options.precision in one.precisions]
        other = next((one for one in able if one.name == backend.name), able[0])
        on = f" on {backend.device}" if backend.device else ""
        raise SbsError(
            f"--engine {options.precision} is not supported by {backend.name}{on} (it has "
            f"{', '.join(backend.precisions)}); use {other.flags}, or --engine {backend.precisions[-1]}"
        )
    check_legalisation(backend, options.legalisation(plan), plan)
    _check_shapes(options, plan)


def _check_shapes(options: BuildOptions, plan: Plan) -> None:
    """SbsError for sizes of axes that the backend needs and lacks, or that belong to no axis."""
    axes, backend = open_axes(specs_of(plan)[0]), options.choice.backend
    for name, (least, largest) in options.shapes.items():
        if not backend.settings:
            raise SbsError(f"--shapes {name}: {backend.name} takes any size, leave it out")
        if name not in axes:
            known = f"the open axes are {', '.join(axes)}" if axes else "only the batch is open (--batch-max)"
            raise SbsError(f"--shapes {name}: no input has this axis; {known}")
        if not 1 <= least <= largest:
            raise SbsError(f"--shapes {name}={least}:{largest}: sizes must satisfy 1 <= least <= largest")
    missing = [name for name in axes if name not in options.shapes] if backend.settings else []
    if missing:
        raise SbsError(
            f"the axis {missing[0]} is open, and {backend.name} builds for given sizes: add "
            f"--shapes {missing[0]}=LEAST:LARGEST"
        )


def make_request(run: RunDir, options: BuildOptions) -> Request:
    """The request for an engine of a run; axes of open size are tuned for the golden samples.

    Raises:
        SbsError: the golden samples are missing, damaged, or outside the sizes that were asked for.
    """
    plan = load_plan(run.plan)
    names, axes = open_axes(specs_of(plan)[0]), dict[str, AxisSizes]()
    if names:
        golden = load_golden(run.golden, plan)
        sizes = sizes_of(golden.inputs, golden.input_specs)
        for name in names:
            least, largest = options.shapes.get(name, (1, sizes[name]))
            if not least <= sizes[name] <= largest:
                raise SbsError(
                    f"--shapes {name}={least}:{largest} leaves out {sizes[name]}, the size of the golden samples"
                )
            axes[name] = AxisSizes(min=least, opt=sizes[name], max=largest)
    return Request(
        backend=options.choice.backend,
        precision=options.precision,
        axes=axes,
        profile=options.batches,
        settings=options.builder,
        timing_cache=run.engines / "timing.cache",
    )


def export_stage(run: RunDir, progress: Progress) -> None:
    """Write the ONNX files; accept existing ones in a bundle, without torch, and where no name builds the model."""
    bundled = (run.root / INDEX).is_file()
    at_hand = not bundled and load_config(run.config).model.startswith(GIVEN)
    if not bundled and not at_hand and importlib.util.find_spec("torch") is not None:
        from sbs_deploy.export.pipeline import export_run

        export_run(run, progress=progress)
        return
    remedy = "sbs-deploy export` on a machine with torch, after `pip install torch"
    if at_hand:
        remedy = "sbs_deploy.export(model, plan, out=..., golden=...)"
    plan = rundir.sha256_of(run.plan)
    for path in (run.model_trt, run.model_ort, run.model_slim, run.golden):
        manifest = rundir.require_whole(path, remedy)
        if manifest.made_from.get(run.plan.name, plan) != plan:
            raise SbsError(f"{path} was made from another plan.json; make it again with `{remedy}`")
    why = "a bundle" if bundled else "a model at hand" if at_hand else "no torch here"
    progress(f"export: {why}, using the files that came with the run")


def validate_stage(run: RunDir, progress: Progress) -> None:
    """Run validation unless it passed on exactly these files.

    Raises:
        GateFailed: validation does not pass.
        SbsError: validation.json is damaged.
    """
    remedy = "make it again with `sbs-deploy validate`"
    if validation_is_current(run) and read_record(run.validation, Validation, remedy).passed:
        progress("validate: passed before on these files")
        return
    report = validate_run(run)
    if not report.passed:
        raise GateFailed(validation_failure(run, report))
    progress("validate: passed")


def _require_quantized(run: RunDir, options: BuildOptions) -> None:
    """SbsError for an INT8 or FP8 engine of a plan that quantizes nothing."""
    if options.precision in ("int8", "fp8") and not any(layer.quantized for layer in load_plan(run.plan).layers):
        raise SbsError("the plan quantizes no layer (mode prune, or all in float): build with --engine fp32 or fp16")


def engine_stage(run: RunDir, options: BuildOptions, placed: Placed | None = None) -> BuiltEngine:
    """Build the engine for the chosen backend.

    Raises:
        SbsError: the plan quantizes nothing but the engine is INT8 or FP8, or the graph is not current.
    """
    _require_quantized(run, options)
    source, made_from, legal = _source(
        run, options, options.legalisation(load_plan(run.plan)) if placed is None else placed.legalisation
    )
    placement = None if placed is None else placed.placement.model_dump()
    destination = engine_path(run, options.precision, options.choice)
    return build_engine(
        source, destination, make_request(run, options), made_from=made_from, legal=legal, placement=placement
    )


def _source(run: RunDir, options: BuildOptions, wanted: Legalisation) -> tuple[Path, dict[str, str], dict[str, Any]]:
    """(graph as the backend executes it, hashes of its inputs, changes of the plan's graph)."""
    backend, precision = options.choice.backend, options.precision
    as_exported = precision == "fp32" or (precision == "int8" and backend.float_type == "fp32")
    plan = load_plan(run.plan)
    if as_exported and wanted == Legalisation(precision=precision, depthwise=wanted.depthwise):
        source = backend.model(run) if precision == "int8" else run.model_slim
        rundir.require_whole(source, "sbs-deploy export")
        unchanged = {"outputs": "none"} if plan.ranges and precision == "int8" else {}
        return source, {run.plan.name: rundir.sha256_of(run.plan)}, unchanged
    legal = legal_model(run, backend, wanted)
    return legal.path, legal.made_from, legal.details


def integer_summary(details: dict[str, Any]) -> str:
    """A sentence on how many quantized layers run in 8 bits, and which do not."""
    found = EngineDetails.model_validate(details)
    quantized, left = found.quantized_layers, found.float_layers
    if left is None:
        return "what was built does not say how many of its layers are in 8 bits"
    placed = 0 if found.placement is None else len(found.placement.float_layers)
    if not quantized and placed:
        return f"all {placed} planned layers are placed in float: the engine is the pruned float network"
    words = f"{quantized - len(left)} of {quantized} quantized layers run in {found.precision.upper() or '8 bits'}"
    more = f" and {len(left) - NAMED} more, which the engine's manifest names" * (len(left) > NAMED)
    words += f"; in float: {', '.join(left[:NAMED])}{more}" * bool(left)
    words += f"; {placed} more planned layers are placed in float" * bool(placed)
    inexact = len(found.saturating_layers)
    return words + f"; {inexact} may saturate: this processor has no VNNI" * bool(inexact)


def graph_words(found: Golden) -> str:
    """A sentence on the answers of a backend's graph."""
    exact = "" if found.top1_exact is None else f", on its exact grids {found.top1_exact:.2f} %"
    off = "" if found.error is None else f"outputs that are off by {100 * found.error:.2g} % of their size"
    if found.top1 is None or found.top1_agreement is None or found.top1_plan is None:
        return f"{off or 'no outputs of floats'}, types and ranges included"
    return (
        f"the plan's class on {found.top1_agreement:.2f} % of {found.images} images (top-1 {found.top1:.2f} %{exact}, "
        f"PyTorch {found.top1_plan:.2f} %){', and ' * bool(off)}{off}, types and ranges included"
    )


def validation_failure(run: RunDir, found: Validation) -> str:
    """One line on a failed validation."""
    first = f", first diverging layer {found.first_divergence}" if found.first_divergence else ""
    why = next(iter(found.failures), "files differ")
    agreement = "" if found.top1_agreement is None else f", top-1 agreement {found.top1_agreement}"
    return (
        f"validation failed: {why}{first} (largest difference {found.max_abs_diff}{agreement}); "
        f"see {run.validation}, and export again with `sbs-deploy export`"
    )
