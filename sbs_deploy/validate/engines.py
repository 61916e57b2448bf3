"""Compare engines on a GPU with their own graphs.

PyTorch's outputs are no sufficient reference: an engine's graph may be legalised (promoted grids, FP8, float controls),
and its float parts compute in float16. So the reference is the engine's graph, computed in float32, node by node
(graph/run.py). The graph with all outputs of nodes rounded to float16's bits (legalise/single.py) shows how far
rounding may move the outputs, which small networks may amplify into other codes. This rounding replaces PyTorch's in
comparison.py, and the rule for integer kernels decides: a sample is undecided if rounding could change its class, and
only for an engine with at most four times that error; of all other samples one in a hundred may differ, and accuracy
may change by 0.2 points.
"""

import contextlib

import numpy as np
import onnx

from sbs_deploy.backends.base import ForAnotherMachine, outputs_in_parts
from sbs_deploy.backends.request import built_with
from sbs_deploy.backends.runtime import runtime_of
from sbs_deploy.backends.spec import backend_named
from sbs_deploy.engines.artifacts import Artifact, find_artifacts
from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.comparison import Reference, classes_of, compare, kernels_pass
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.run import outputs_of
from sbs_deploy.legalise.single import precisions
from sbs_deploy.machine import clocks
from sbs_deploy.validate.divergence import first_engine_divergence
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import Manifest, RunDir
from sbs_train.contract.validation import CheckedEngine

SUFFIX = ".engine"
"""Suffix of compared engines; `validate.run` compares ONNX files."""
SAMPLES = 1000
"""Number of golden samples that an engine is compared on."""
NOISE_SAMPLES = 256
"""Number of golden samples that rounding is measured on."""
LAYER_SAMPLES = 16
"""Number of golden samples that layers of a failed engine are compared on."""


def in_words(found: CheckedEngine) -> str:
    """One line for people."""
    if (reference := found.against_reference) is None:
        return f"{'not checked' if found.passed is None else 'failed'}: {found.note}"
    words = f"{'passed' if found.passed else 'FAILED'} on {found.device}: "
    if (classes := classes_of(reference)) is not None:
        words += f"top-1 {classes.top1:.2f} %, {classes.top1_agreement:.2f} % like {found.reference}"
    else:
        off = [f"{name} off by {np.inf if one.error is None else one.error:.1e}" for name, one in reference.items()]
        words += f"{', '.join(off)} from {found.reference}"
    words += f", first diverging layer {found.first_divergence}" if found.first_divergence else ""
    return words + (f" ({found.note})" if found.note else "")


def engine_verdicts(run: RunDir) -> list[CheckedEngine]:
    """A verdict on every engine of the run that was built for a GPU.

    Raises:
        SbsError: the plan or golden.npz is missing or damaged.
    """
    if not list(run.engines.glob(f"*{SUFFIX}")):
        return []
    gpu = clocks.gpu_name()
    plan = load_plan(run.plan)
    artifacts = find_artifacts(run, plan, against=(), threads=1)
    found = [one for one in artifacts if one.path.suffix == SUFFIX and one.path.parent == run.engines]
    if gpu is None:
        return [_verdict_of(artifact, None, "no NVIDIA GPU") for artifact in found]
    golden = load_golden(run.golden, plan).first(SAMPLES)
    return [_verdict(artifact, golden) for artifact in found]


def _verdict_of(artifact: Artifact, passed: bool | None, why: str, device: str | None = None) -> CheckedEngine:
    """None for a file that is not for this machine; False for one that is damaged, stale or refused here."""
    return CheckedEngine(
        engine=artifact.path.name, precision=artifact.precision, passed=passed, note=why, device=device
    )


def _verdict(artifact: Artifact, golden: GoldenArrays) -> CheckedEngine:
    with contextlib.ExitStack() as stack:
        try:
            engine = artifact.open(0, stack)
            manifest = rundir.read_manifest(artifact.path)
            batch = built_with(manifest.details, artifact.path.name)[0].max
        except ForAnotherMachine as error:
            return _verdict_of(artifact, None, str(error))
        except SbsError as error:
            return _verdict_of(artifact, False, str(error))
        device = engine.device
        try:
            source = artifact.source()
        except SbsError as error:
            return _verdict_of(artifact, None, str(error))
        try:
            outputs = outputs_in_parts(engine, golden.inputs, batch)
            model = load_onnx(source)
            found = compare(outputs, _reference(model, golden))
        except SbsError as error:
            return _verdict_of(artifact, False, str(error), device)
    passed = kernels_pass(found)
    some = golden.first_inputs(min(batch, LAYER_SAMPLES))
    layer, note = (None, None) if passed else _first_layer(model, artifact, manifest, some)
    return CheckedEngine(
        engine=artifact.path.name,
        precision=artifact.precision,
        passed=passed,
        note=note,
        device=device,
        reference=source.name,
        against_reference=found,
        against_pytorch=None if artifact.control else compare(outputs, golden.reference),
        first_divergence=layer,
    )


def _reference(model: onnx.ModelProto, golden: GoldenArrays) -> Reference:
    """The graph's outputs, with those of the rounded graph as the exact ones to measure rounding."""
    exact, rounded = precisions(model)
    noisy = outputs_of(rounded, golden.first_inputs(NOISE_SAMPLES))
    return Reference(
        outputs=outputs_of(exact, golden.inputs),
        exact={name: one.astype(np.float64) if one.dtype.kind == "f" else one for name, one in noisy.items()},
        labels=golden.labels,
    )


def _first_layer(
    model: onnx.ModelProto, artifact: Artifact, manifest: Manifest, inputs: Named
) -> tuple[str | None, str | None]:
    """(first layer that differs or None, why no layer is named or None)."""
    backend = backend_named(artifact.backend)
    runtime = runtime_of(backend)
    try:
        like = runtime.request_like(backend, artifact.precision, manifest.details)
        layer = first_engine_divergence(
            model,
            inputs,
            lambda graph, some: runtime.outputs(graph, some, like),
        )
    except SbsError as error:
        return None, f"layers were not compared: {error}"
    if layer is None:
        return None, "built again with its layers as outputs, the graph answers as it should: build the engine again"
    return layer, None
