"""Compare engines on a GPU with their own graphs.

PyTorch's logits are no sufficient reference: an engine's graph may be legalised (promoted grids, FP8, float controls),
and its float parts compute in float16. So the reference is the engine's graph, computed in float32, node by node
(graph/run.py). The graph with all outputs of nodes rounded to float16's bits (legalise/single.py) shows how far
rounding may move the logits, which small networks may amplify into other codes. This rounding replaces PyTorch's in
comparison.py, and the rule for integer kernels decides: an image is undecided if rounding could change its class, and
only for an engine with at most four times that error; of all other images one in a hundred may differ, and accuracy
may change by 0.2 points.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from sbs_deploy.backends.base import Engine, ForAnotherMachine
from sbs_deploy.backends.request import built_with
from sbs_deploy.backends.runtime import runtime_of
from sbs_deploy.backends.spec import backend_named
from sbs_deploy.engines.artifacts import Artifact, find_artifacts
from sbs_deploy.export.codes import load_golden
from sbs_deploy.graph.comparison import compare_logits, kernels_pass
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.graph.run import logits_of
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
IMAGES = 1000
"""Number of golden images that an engine is compared on."""
NOISE_IMAGES = 256
"""Number of golden images that rounding is measured on."""
LAYER_IMAGES = 16
"""Number of golden images that layers of a failed engine are compared on."""


def in_words(found: CheckedEngine) -> str:
    """One line for people."""
    if (reference := found.against_reference) is None:
        return f"{'not checked' if found.passed is None else 'failed'}: {found.note}"
    words = f"{'passed' if found.passed else 'FAILED'} on {found.device}: top-1 {reference.top1:.2f} %, "
    words += f"{reference.top1_agreement:.2f} % like {found.reference}"
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
    artifacts = find_artifacts(run, load_plan(run.plan), against=(), threads=1)
    found = [one for one in artifacts if one.path.suffix == SUFFIX and one.path.parent == run.engines]
    if gpu is None:
        return [_verdict_of(artifact, None, "no NVIDIA GPU") for artifact in found]
    golden = {key: array[:IMAGES] for key, array in load_golden(run.golden).items()}
    return [_verdict(artifact, golden) for artifact in found]


def _verdict_of(artifact: Artifact, passed: bool | None, why: str, device: str | None = None) -> CheckedEngine:
    """None for a file that is not for this machine; False for one that is damaged, stale or refused here."""
    return CheckedEngine(
        engine=artifact.path.name, precision=artifact.precision, passed=passed, note=why, device=device
    )


def _verdict(artifact: Artifact, golden: Mapping[str, npt.NDArray[Any]]) -> CheckedEngine:
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
            logits = engine_logits(engine, golden["inputs"], batch)
        except SbsError as error:
            return _verdict_of(artifact, False, str(error), device)
    model = load_onnx(source)
    found = compare_logits(logits, _reference(model, golden))
    passed = kernels_pass(found)
    layer, note = (None, None) if passed else _first_layer(model, artifact, manifest, golden["inputs"][:batch])
    return CheckedEngine(
        engine=artifact.path.name,
        precision=artifact.precision,
        passed=passed,
        note=note,
        device=device,
        reference=source.name,
        against_reference=found,
        against_pytorch=None if artifact.control else compare_logits(logits, golden),
        first_divergence=layer,
    )


def engine_logits(engine: Engine, images: npt.NDArray[Any], batch: int) -> FloatArray:
    """Logits (N, classes) of images (N, C, H, W), `batch` at a time."""
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([engine.run(np.ascontiguousarray(part, np.float32)) for part in parts])


def _reference(model: onnx.ModelProto, golden: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The `golden` argument of `compare_logits`, with the rounded graph's logits as `exact` to measure rounding."""
    exact, rounded = precisions(model)
    images = golden["inputs"]
    return {
        "logits": logits_of(exact, images),
        "labels": golden["labels"],
        "exact": logits_of(rounded, images[:NOISE_IMAGES]).astype(np.float64),
    }


def _first_layer(
    model: onnx.ModelProto, artifact: Artifact, manifest: Manifest, images: npt.NDArray[Any]
) -> tuple[str | None, str | None]:
    """(first layer that differs or None, why no layer is named or None)."""
    backend = backend_named(artifact.backend)
    runtime = runtime_of(backend)
    try:
        like = runtime.request_like(backend, artifact.precision, manifest.details)
        layer = first_engine_divergence(
            model,
            np.ascontiguousarray(images[:LAYER_IMAGES], np.float32),
            lambda graph, some: runtime.outputs(graph, some, like),
        )
    except SbsError as error:
        return None, f"layers were not compared: {error}"
    if layer is None:
        return None, "built again with its layers as outputs, the graph answers as it should: build the engine again"
    return layer, None
