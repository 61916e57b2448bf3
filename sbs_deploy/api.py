"""The package's public functions, which the commands call as well. Each imports what it needs when it is called."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sbs_deploy.opening import Progress, Run, log_line, open_run, path_of, writing
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import MINUTES
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from sbs_deploy.backends.base import BuiltEngine, Engine
    from sbs_deploy.backends.request import BuilderSettings
    from sbs_deploy.backends.spec import BackendName, Precision
    from sbs_deploy.bundle import WrittenBundle
    from sbs_deploy.lint.finding import Finding
    from sbs_deploy.measure.protocol import Protocol
    from sbs_train.contract.plan import Plan
    from sbs_train.contract.results import Row
    from sbs_train.contract.validation import Validation
    from sbs_train.tasks.protocol import Task

LATEST = "runs/latest"


def build(
    run: Run = LATEST,
    precision: "Precision" = "int8",
    backend: 'Literal["auto"] | BackendName' = "onnxruntime",
    *,
    provider: str | None = None,
    device: str | None = None,
    batch_opt: int | None = None,
    batch_max: int | None = None,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    legalise: Literal["exact", "promote-8", "promote"] | None = None,
    outputs: Literal["none", "layers", "all"] | None = None,
    depthwise: Literal["int8", "fp16"] | None = None,
    builder: "BuilderSettings | None" = None,
    placement: Literal["measured", "plan"] | None = None,
    placement_minutes: float = MINUTES,
    threads: int = 1,
    model: str | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> "BuiltEngine":
    """Build an engine of a run: export, validate, engine. What is current is left alone.

    >>> engine = build("runs/latest", precision="int8", backend="onnxruntime", placement="plan")
    >>> engine.path.name
    'model.int8.onnxruntime.onnx'

    Args:
        precision: int8 is the plan; fp8 its grids as E4M3; fp16 and fp32 the pruned network in float.
        backend: tensorrt, tensorrt-rtx, openvino, onnxruntime, or auto.
        provider: of ONNX Runtime: cpu, cuda, tensorrt, nv-tensorrt-rtx.
        device: of OpenVINO: CPU, GPU, NPU.
        batch_opt: batch size that the engine is tuned for, and its placement measured with.
        batch_max: largest batch of a TensorRT engine.
        shapes: least and largest size of every other axis of open size, by the axis's name, such as
            {"height": (128, 512)}; TensorRT builds for given sizes, and tunes for those of the golden samples. Other
            backends take any size.
        legalise: exact keeps the plan's grids of activations; promote-8 and promote give them all codes of INT8.
        outputs: what is quantized beside the inputs of layers.
        depthwise: type of depthwise convolutions.
        builder: settings of TensorRT's builder.
        placement: measured times whole graphs and leaves in float what is slower in integers; plan builds every layer
            as planned. None measures where the backend can run here.
        placement_minutes: about how long placement may measure.
        threads: threads inside an operator, on a CPU, that placement is measured with.
        model: path/to/file.py:factory that the run was trained with, so that its code may run.
        trust: allow all code that the run names.
        progress: gets a line for each step; the logger "sbs_deploy" unless given.

    Returns:
        The engine, a path that `load` takes, and how it was built.

    Raises:
        GateFailed: validation did not pass.
        SbsError: a file is missing or damaged, or the backend cannot build what was asked for.
    """
    from functools import partial

    from sbs_deploy.backends.request import DEFAULTS, batch_profile, check_settings
    from sbs_deploy.backends.spec import Precision as Precisions
    from sbs_deploy.backends.spec import choose_backend
    from sbs_deploy.build import BuildOptions, build_run
    from sbs_deploy.engines.rebuild import FLAGS
    from sbs_deploy.placement.run import PlacementSettings, check_placement, place_run

    for name, value, choices in (
        ("precision", precision, get_args(Precisions)),
        ("legalise", legalise, (None, "exact", "promote-8", "promote")),
        ("outputs", outputs, (None, "none", "layers", "all")),
        ("depthwise", depthwise, (None, "int8", "fp16")),
        ("placement", placement, (None, "measured", "plan")),
    ):
        if value not in choices:
            raise SbsError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}")
    given = {"activations": legalise, "outputs": outputs}
    settings = PlacementSettings(
        mode=placement,
        minutes=placement_minutes,
        threads=threads,
        free=tuple(name for name in FLAGS if given[name] is None),
    )
    choice = choose_backend(backend, provider=provider, device=device)
    check_settings(builder or DEFAULTS, choice.backend)
    options = BuildOptions(
        precision=precision,
        choice=choice,
        batches=batch_profile(choice.backend, batch_opt, batch_max),
        shapes=dict(shapes or {}),
        activations=legalise,
        outputs=outputs,
        depthwise=depthwise,
        builder=builder or DEFAULTS,
    )
    check_placement(options, settings, batch_given=batch_opt is not None)
    with writing(run, "build", progress, trust=trust, model=model) as opened:
        return build_run(opened, options, progress or log_line, partial(place_run, settings=settings))


def export(
    model: "nn.Module",
    plan: "Plan",
    *,
    out: str | os.PathLike[str],
    golden: Iterable[Any],
    calibration: Iterable[Any] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    progress: Progress | None = None,
) -> RunDir:
    """Write a run of a searched model: its ONNX files and golden.npz. The model at hand is exported, none is rebuilt.

    The plan gives bits and channels, the model its weights and clip values of now. The float control
    (deploy/model.fp32.onnx) is the same model, neither pruned nor quantized.

    >>> import torch, sbs_train
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> x = torch.randn(32, 8)
    >>> search = sbs_train.Search(model, x, target="16x", steps=8, calibration=[x])
    >>> for _ in range(8):
    ...     model(x).square().mean().backward()
    ...     search.step()
    >>> run = export(model, search.finish(), out="runs/mine", golden=[x])
    >>> validate(run).passed
    True

    Args:
        model: what `sbs_train.Search` got, a copy of it, or a wrapper around it, on any device; it does not change.
        plan: what `Search.finish` returned.
        out: the run directory.
        golden: batches of inputs in the form of `Search`'s example_inputs; the reference of all later comparisons.
        calibration: more such batches, which the ranges of outputs are found on; the first golden ones unless given.
        dynamic: axes of inputs whose size may vary, by input and axis, such as {"x": {0: "batch", 2: "height"}}; the
            batch unless given.
        progress: gets a line for each step; the logger "sbs_deploy" unless given.

    Raises:
        SbsError: the model was not searched, cannot be exported, or cannot run the golden inputs; or the plan is of
            another model.
    """
    from sbs_deploy.export.at_hand import export_at_hand

    return export_at_hand(
        model,
        plan,
        path_of(out, "out"),
        golden=golden,
        calibration=calibration,
        dynamic=dynamic,
        progress=progress or log_line,
    )


def load(engine: str | os.PathLike[str], *, threads: int = 1, trust: bool = False) -> "Engine":
    """Load an engine that `build` made, with the backend that it was built for.

    >>> import numpy as np
    >>> engine_path = build("runs/latest", backend="onnxruntime", placement="plan")
    >>> with load(engine_path) as engine:
    ...     taken = engine.inputs[0]
    ...     images = np.zeros((2, *taken.shape[1:]), taken.dtype)
    ...     outputs = engine.run({taken.name: images})
    >>> {name: array.shape for name, array in outputs.items()}
    {'logits': (2, 10)}

    Args:
        engine: the engine's file, with its manifest beside it.
        threads: threads inside an operator, on a CPU.
        trust: allow the host code of an engine that was built version-compatible.

    Raises:
        SbsError: the file is no engine, is damaged, was built for another machine, or the backend is not installed.
    """
    from sbs_deploy.engines.loading import load_engine

    return load_engine(path_of(engine, "engine"), threads=threads, trust=trust)


def validate(run: Run = LATEST, *, trust: bool = False, progress: Progress | None = None) -> "Validation":
    """Compare PyTorch, the ONNX files, integer kernels and engines, output by output; writes deploy/validation.json.

    >>> found = validate("runs/latest")
    >>> found.passed, found.codes_equal
    (True, True)

    Args:
        trust: allow the host code of engines.
        progress: as in `build`.

    Returns:
        The results; `passed` is False where something differs by more than rounding, and `failures` says what.

    Raises:
        SbsError: a file is missing or damaged.
    """
    from sbs_deploy.validate.run import validate_run, with_engines

    with writing(run, "validate", progress, trust=trust) as opened:
        return with_engines(opened, validate_run(opened))


def evaluate(
    run: Run = LATEST,
    task: "Task | None" = None,
    backend: 'Literal["auto"] | BackendName' = "auto",
    *,
    precision: "Precision" = "int8",
    provider: str | None = None,
    device: str | None = None,
    threads: int = 1,
    trust: bool = False,
) -> dict[str, float]:
    """The task's own metrics of an engine itself on the test split, the score first; needs torch.

    >>> found = evaluate("runs/latest")
    >>> sorted(found)
    ['images', 'loss', 'top1', 'top5']

    Args:
        task: the task that the run was trained for; None makes it from the run's settings.
        backend: what the engine was built for; auto takes the only engine of the precision.
        precision: that of the engine.
        threads: threads inside an operator, on a CPU.
        trust: allow the code of the task, and host code of the engine.

    Raises:
        SbsError: the engine is not built, or the task is missing, or not that of the network.
    """
    from sbs_deploy.backends.spec import choose_backend
    from sbs_deploy.engines.evaluate import evaluate_engine

    automatic = backend == "auto" and provider is None and device is None
    choice = None if automatic else choose_backend(backend, provider=provider, device=device)
    with trusting(everything=trust):
        return evaluate_engine(open_run(run), task, choice, precision=precision, threads=threads, trust=trust)


def bench(
    run: Run = LATEST,
    batch: int | Sequence[int] = (1,),
    *,
    against: Sequence[str] = ("fp32", "slim"),
    threads: int = 1,
    builds: int = 1,
    protocol: "Protocol | None" = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> "list[Row]":
    """Measure every engine of a run that can run here, in turns with its float controls; writes deploy/bench.json.

    >>> from sbs_deploy.measure.protocol import Protocol
    >>> rows = bench("runs/latest", batch=[1, 8], protocol=Protocol(warmup_ms=1, rounds=2))
    >>> sorted({row.batch for row in rows})
    [1, 8]

    Args:
        batch: one size or more.
        against: float controls beside the dense FP32 network: fp16 (dense) and slim (pruned).
        threads: threads inside an operator, on a CPU.
        builds: engines per artifact: the existing one, and new builds of its graph.
        protocol: warm-up, rounds and turns.
        trust: allow the host code of engines.
        progress: as in `build`.

    Returns:
        A row for each artifact and batch size: with latencies (a `TimedRow`), or with the error that prevented them.

    Raises:
        SbsError: nothing could be measured, or a file is missing or damaged.
    """
    from sbs_deploy.measure.protocol import Protocol
    from sbs_deploy.measure.run import BenchSettings, bench_run

    sizes = list(batch) if isinstance(batch, Sequence) else [batch]
    if not all(isinstance(size, int) for size in sizes):
        raise SbsError(f"batch is {batch!r}; give a whole number, or several")
    settings = BenchSettings(
        batches=tuple(sizes),
        against=tuple(against),
        threads=threads,
        builds=builds,
        protocol=protocol or Protocol(),
    )
    with writing(run, "bench", progress, trust=trust) as opened:
        return bench_run(opened, settings, progress or log_line)


def report(run: Run = LATEST, out: str | os.PathLike[str] | None = None, *, progress: Progress | None = None) -> Path:
    """Write the page of a run, deploy/report.html unless `out` names another file.

    >>> report("runs/latest").name
    'report.html'

    Raises:
        SbsError: a file of the run is damaged.
    """
    from sbs_deploy.report.page import write_page

    opened, path = open_run(run, progress), None if out is None else path_of(out, "out")
    write_page(opened, path, progress or log_line)
    return path or opened.report


def bundle(
    run: Run = LATEST,
    out: str | os.PathLike[str] | None = None,
    *,
    images: int = 1000,
    trust: bool = False,
    progress: Progress | None = None,
) -> "WrittenBundle":
    """Write one file for a device, NAME.sbs.zip, where every function here takes it as a run, without torch.

    >>> bundle("runs/latest", "small.sbs.zip", images=10).images
    10

    Args:
        out: named after the run, in the current directory, unless given.
        images: number of golden samples to take along, the first ones.
        trust: allow all code that the run names.
        progress: as in `build`.

    Raises:
        GateFailed: validation does not pass.
        SbsError: an exported file is missing, damaged or of another plan, or `out` is no name of a bundle.
    """
    from sbs_deploy.bundle import SUFFIX, make_bundle

    if images < 1:
        raise SbsError(f"--images {images} must be at least 1")
    with writing(run, "bundle", progress, trust=trust) as opened:
        path = Path(opened.root.resolve().name + SUFFIX) if out is None else path_of(out, "out")
        return make_bundle(opened, path, images=images, progress=progress or log_line)


def lint(
    model: str | os.PathLike[str],
    rules: Literal["auto", "trt", "ort"] = "auto",
) -> "list[Finding]":
    """What makes a quantized ONNX file slow or refused on a backend, errors first.

    >>> findings = lint("runs/latest/deploy/model.ort.onnx")
    >>> all(finding.rule.remedy for finding in findings)
    True

    Args:
        model: any ONNX file.
        rules: dialect of the file; auto is the one that it was exported in, both for any other file.

    Raises:
        SbsError: the file is missing, damaged or not ONNX.
    """
    from sbs_deploy.lint.run import lint_file

    return lint_file(path_of(model, "model"), rules).findings
