"""The plan's graph as a target executes it, written beside the plan's own: deploy/legal/.

Made on the device from model.slim.onnx and the integer codes, without torch. `model.trt.onnx` and `model.ort.onnx` stay
what the plan says, exactly.
"""

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from sbs_deploy.export.codes import Codes, load_codes, load_golden
from sbs_deploy.export.ort import ORT
from sbs_deploy.export.pipeline import load_onnx, save_onnx
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.trt import TRT
from sbs_deploy.legalise.fp8 import fp8_from_int8
from sbs_deploy.legalise.half import float32_layers, half_precision
from sbs_deploy.legalise.integers import promoted, without_layers
from sbs_deploy.targets import Precision, Target
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir

FORMAT = "1"
"""Of the legalised files; raise it when the same inputs give other files."""
IMAGES = 1000
"""Golden images that a legalised graph is compared on."""

Activations = Literal["exact", "promote"]


@dataclass(frozen=True, kw_only=True)
class Legalisation:
    """What `sbs-deploy build` was asked for."""

    precision: Precision
    activations: Activations = "exact"
    """exact: grids below 8 bits stay, by Clips. promote: they get all codes of 8 bits, with the plan's clip value."""
    depthwise: Literal["int8", "fp16"] = "int8"
    """fp16: depthwise convolutions are not quantized, in engines that are."""


@dataclass(frozen=True, kw_only=True)
class LegalModel:
    """A legalised file and what was changed."""

    path: Path
    made_from: dict[str, str]
    """Hashes of the plan and the files of the export."""
    details: dict[str, Any]
    """`activations`, `depthwise`; numbers of layers promoted and left in float; names of layers kept in
    float32; `golden`, its answers on the golden images."""


def legal_model(run: RunDir, target: Target, options: Legalisation) -> LegalModel:
    """Write deploy/legal/model.PRECISION.TARGET.onnx unless it is current.

    Raises:
        SbsError: a file of the export is missing or damaged, or the target cannot execute what was asked for.
    """
    check_legalisation(target, options)
    sources = (run.plan, run.model_slim, run.codes)
    made_from = {path.name: rundir.sha256_of(run.require(path, "sbs-deploy export")) for path in sources}
    inputs = {**made_from, "format": FORMAT, "options": rundir.hash_of(asdict(options) | {"target": target.label})}
    inputs |= {run.golden.name: rundir.sha256_of(run.require(run.golden, "sbs-deploy export"))}
    path = run.deploy / "legal" / f"model.{options.precision}.{target.label}.onnx"
    if not rundir.is_current(path, inputs):
        model, details = _legalised(run, load_plan(run.plan), target, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(model, path)
        exact = {"ort": run.model_ort, "trt": run.model_trt}[target.dialect]
        golden = _answers(run, path, exact if options.activations == "promote" else None)
        rundir.write_manifest(path, inputs, details=details | {"golden": golden})
    return LegalModel(path=path, made_from=made_from, details=rundir.read_manifest(path).details)


def _answers(run: RunDir, path: Path, exact: Path | None) -> dict[str, float] | None:
    """Top-1 of the file, of PyTorch and of the file with `exact` grids, in percent, and how often the first two agree.

    None where ONNX Runtime is missing. That computes float16 in float32 on a CPU: this shows what other grids do, not
    how float16 rounds.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    from sbs_deploy.validate import comparer

    golden = {key: array[:IMAGES] for key, array in load_golden(run.golden).items()}
    compare = comparer(golden)
    found = compare(path, "none")
    return {
        "images": found.images,
        "top1": found.top1,
        "top1_plan": 100 * float(np.mean(golden["logits"].argmax(1) == golden["labels"])),
        "top1_agreement": found.top1_agreement,
        **({} if exact is None else {"top1_exact": compare(exact, "none").top1}),
    }


def check_legalisation(target: Target, options: Legalisation) -> None:
    """Refuse what the target cannot execute, before any work is done.

    Raises:
        SbsError: promoted activations in a float engine, or FP16 convolutions where there are none.
    """
    if options.activations == "promote" and options.precision in ("fp16", "fp32"):
        raise SbsError(f"--legalise promote: --engine {options.precision} quantizes nothing; leave it out")
    if options.depthwise == "fp16" and target.float_type != "fp16":
        raise SbsError(f"--depthwise fp16: {target.name} has no FP16 convolutions; leave it out")


def _legalised(
    run: RunDir, plan: Plan, target: Target, options: Legalisation
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    slim = load_onnx(run.model_slim)
    details: dict[str, Any] = {"float_type": target.float_type}
    if options.precision in ("fp16", "fp32"):
        model = half_precision(slim) if options.precision == "fp16" else slim
        left = float32_layers(slim) if options.precision == "fp16" else []
        return model, {**details, "float_type": options.precision, "float32_layers": left}
    codes = load_codes(run.codes)
    dialect = ORT if target.dialect == "ort" else TRT
    details |= {"activations": options.activations, "depthwise": options.depthwise}
    if options.activations == "promote":
        before, codes = codes, promoted(codes, dialect)
        details["promoted_layers"] = _changed(before, codes)
    if options.depthwise == "fp16":
        names = {layer.name for layer in plan.layers if layer.kind == "depthwise" and layer.name in codes.layers}
        codes = without_layers(codes, names)
        details["float_depthwise_layers"] = len(names)
    model = quantized_onnx(slim, codes, dialect, plan_sha256=rundir.sha256_of(run.plan))
    if options.precision == "fp8":
        model = fp8_from_int8(model)
    if target.float_type == "fp16":
        details["float32_layers"] = float32_layers(model)
        model = half_precision(model)
    return model, details


def _changed(before: Codes, after: Codes) -> int:
    return sum(layer.input != after.layers[name].input for name, layer in before.layers.items())
