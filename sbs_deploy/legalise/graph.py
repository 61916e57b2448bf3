"""The plan's graph as a backend executes it, in deploy/legal/.

Made on the device from model.slim.onnx and the integer codes, without torch. `model.trt.onnx` and `model.ort.onnx`
remain the exact plan.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx

from sbs_deploy.backends.spec import DEFAULT_BACKEND, Backend, Precision
from sbs_deploy.export.codes import Codes, load_codes
from sbs_deploy.export.dialects import DIALECTS, Dialect
from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.graph.comparison import classes_of, compare, top1_of
from sbs_deploy.graph.links import makers_of
from sbs_deploy.graph.model_file import load_onnx, save_onnx
from sbs_deploy.graph.names import QUANTIZED_OPS, layer_of
from sbs_deploy.graph.run import can_run, outputs_of, relative_error
from sbs_deploy.legalise.factors import with_folded_factors
from sbs_deploy.legalise.floats import with_float_layers, without_idle_additions, without_layers
from sbs_deploy.legalise.fp8 import fp8_from_int8
from sbs_deploy.legalise.half import float32_layers, half_precision
from sbs_deploy.legalise.outputs import EIGHT_BITS, Outputs, with_quantized_outputs
from sbs_deploy.legalise.ranges import beyond_float16
from sbs_deploy.legalise.single import with_float16_range
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Quantizer
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.records import Details, Golden
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Classes

FORMAT = "5"
"""Version of the legalised files; raise it when the same inputs give other files."""
SAMPLES = 1000
"""Golden samples that a legalised graph is compared on."""
ERROR_SAMPLES = 64
"""Golden samples on which the graph is computed in float16."""

Activations = Literal["exact", "promote-8", "promote"]


@dataclass(frozen=True, kw_only=True)
class Legalisation:
    """Options of `sbs-deploy build` that change the graph."""

    precision: Precision
    activations: Activations = "exact"
    """exact: Clips keep grids of fewer codes than the container. promote: these grids get all codes of it, with the
    plan's clip value. promote-8: only grids of 8 bits do, such as 127 codes in uint8."""
    outputs: Outputs = "none"
    """none: what the plan quantizes is quantized. layers: the output of every quantized layer as well, with the plan's
    range, but no addition that gains nothing from it. all: also what lies between quantized tensors, see
    `legalise.outputs`."""
    depthwise: Literal["int8", "fp16"] = "int8"
    """fp16: depthwise convolutions of a quantized engine are not quantized."""
    float_layers: tuple[str, ...] = ()
    """Names of planned layers that are not quantized: they compute in float, with the plan's weights."""


@dataclass(frozen=True, kw_only=True)
class LegalModel:
    """A legalised file and its changes."""

    path: Path
    made_from: dict[str, str]
    """Hashes of the plan and the files of the export."""
    details: dict[str, Any]
    """`activations`, `outputs`, `depthwise`, `float_layers`; numbers of layers promoted and left in float; names of
    layers kept in float32, and of the tensors that float16 cannot hold; `golden`, its answers on the golden samples."""


def legal_model(run: RunDir, backend: Backend, options: Legalisation) -> LegalModel:
    """Write deploy/legal/model.PRECISION.BACKEND.onnx unless it is current.

    Raises:
        SbsError: a file of the export is missing or damaged, or the backend cannot execute what was asked for.
    """
    plan = load_plan(run.plan)
    check_legalisation(backend, options, plan)
    sources = (run.plan, run.model_slim, run.codes)
    made_from = {path.name: rundir.sha256_of(run.require(path, "sbs-deploy export")) for path in sources}
    inputs = {**made_from, "format": FORMAT, "options": rundir.hash_of(asdict(options) | {"target": backend.label})}
    inputs |= {run.golden.name: rundir.sha256_of(run.require(run.golden, "sbs-deploy export"))}
    path = run.deploy / "legal" / f"model.{options.precision}.{backend.label}.onnx"
    if not rundir.is_current(path, inputs):
        model, details = legalised(run, backend, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(model, path)
        exact = backend.model(run)
        plain = run.model_slim if options.precision in ("fp16", "fp32") else exact
        golden = _answers(run, path, exact if options.activations != "exact" else None, plain)
        rundir.write_manifest(path, inputs, details=details | {"golden": golden})
    return LegalModel(path=path, made_from=made_from, details=rundir.read_manifest(path).details)


def _answers(run: RunDir, path: Path, exact: Path | None, plain: Path) -> dict[str, float | None] | None:
    """`Golden` of the file, `top1_exact` of the file with `exact` grids; None where graph/run.py cannot run.

    A CPU computes float16 in float32, so for `error`, against `plain`, nodes are added to the graph that limit values
    to float16's digits and range.

    Raises:
        SbsError: a value of an output in float16 is not finite.
    """
    if not can_run():
        return None
    golden = load_golden(run.golden, load_plan(run.plan)).first(SAMPLES)
    some = golden.first_inputs(ERROR_SAMPLES)
    narrow, wide = (outputs_of(one, some) for one in (with_float16_range(load_onnx(path)), load_onnx(plain)))
    floats = [name for name, output in wide.items() if output.dtype.kind == "f"]
    if not all(np.isfinite(narrow[name]).all() for name in floats):
        raise SbsError(
            f"{path.name}: in float16 its answers are not numbers; build with --engine fp32, or {DEFAULT_BACKEND.flags}"
        )
    answers: dict[str, float | None] = {
        "images": golden.samples,
        "error": max((relative_error(narrow[name], wide[name]) for name in floats), default=None),
        "error_images": min(ERROR_SAMPLES, golden.samples),
    }
    if (found := _classes(path, golden)) is not None:
        top1_plan = top1_of(golden.outputs, golden.labels)
        answers |= {"top1": found.top1, "top1_plan": top1_plan, "top1_agreement": found.top1_agreement}
        if exact is not None and (before := _classes(exact, golden)) is not None:
            answers["top1_exact"] = before.top1
    return answers


def _classes(path: Path, golden: GoldenArrays) -> Classes | None:
    """The file's classes against those of PyTorch; None for a network without classes."""
    if golden.reference.classes is None:
        return None
    return classes_of(compare(outputs_of(load_onnx(path), golden.inputs), golden.reference))


def legal_answers(run: RunDir) -> dict[str, Golden]:
    """Answers of the run's legalised graphs that are of its plan, by file name.

    Raises:
        SbsError: a manifest is damaged.
    """
    plan, found = rundir.sha256_of(run.plan), {}
    for path in sorted((run.deploy / "legal").glob("*.onnx")):
        manifest = rundir.require_whole(path, "sbs-deploy build")
        golden = Details.model_validate(manifest.details).golden
        if golden is not None and manifest.made_from.get(run.plan.name) == plan:
            found[path.name] = golden
    return found


def check_legalisation(backend: Backend, options: Legalisation, plan: Plan) -> None:
    """Refuse options that the backend cannot execute, or that the plan lacks ranges for, before any work.

    Raises:
        SbsError: promoted activations or quantized outputs in a float engine, quantized outputs without ranges or with
            zero-point 0, or FP16 convolutions on a backend without FP16.
    """
    if options.precision in ("fp16", "fp32"):
        for flag, value, usual in (("outputs", options.outputs, "none"), ("legalise", options.activations, "exact")):
            if value != usual:
                raise SbsError(f"--{flag} {value}: --engine {options.precision} quantizes nothing; leave it out")
    if options.outputs != "none" and backend.dialect != "ort":
        raise SbsError(f"--outputs {options.outputs}: {backend.name} quantizes behind layers by itself; leave it out")
    if options.outputs != "none" and not plan.ranges:
        raise SbsError(f"--outputs {options.outputs}: plan.json has no ranges of outputs, as it is older; train again")
    if options.depthwise == "fp16" and backend.float_type != "fp16":
        raise SbsError(f"--depthwise fp16: {backend.name} has no FP16 convolutions; leave it out")


def legalised(run: RunDir, backend: Backend, options: Legalisation) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The plan's graph as the backend executes it, and its changes as in `LegalModel.details`.

    Raises:
        SbsError: a file of the export is missing or damaged.
    """
    slim, plan = load_onnx(run.model_slim), load_plan(run.plan)
    details: dict[str, Any] = {"float_type": backend.float_type}
    if options.precision in ("fp16", "fp32"):
        model, left = _half(slim, run) if options.precision == "fp16" else (slim, {"float32_layers": []})
        return model, {**details, "float_type": options.precision, **left}
    codes = load_codes(run.codes)
    dialect = DIALECTS[backend.dialect]
    details |= {"activations": options.activations, "depthwise": options.depthwise}
    if plan.ranges:
        details["outputs"] = options.outputs
    if options.activations != "exact":
        before, codes = codes, promoted(codes, dialect, options.activations, ceilings_of(slim))
        details["promoted_layers"] = _changed(before, codes)
    if options.depthwise == "fp16":
        names = {layer.name for layer in plan.layers if layer.kind == "depthwise" and layer.name in codes.layers}
        codes = without_layers(codes, names)
        details["float_depthwise_layers"] = len(names)
    if options.float_layers:
        codes = with_float_layers(codes, options.float_layers, slim)
        details["float_layers"] = list(options.float_layers)
    if options.outputs != "none":
        slim, codes = with_folded_factors(slim, without_idle_additions(codes, slim))
    if dialect.bias == "int32" and (options.activations != "exact" or options.outputs != "none"):
        dialect = replace(dialect, bias="rounded")  # integer kernels would round them too, those of Gemm stay in float
    model = quantized_onnx(slim, codes, dialect, plan_sha256=rundir.sha256_of(run.plan))
    if options.outputs != "none":
        model, details["quantized_outputs"] = with_quantized_outputs(model, codes, options.outputs)
    if options.precision == "fp8":
        model = fp8_from_int8(model)
    if backend.float_type == "fp16":
        model, left = _half(model, run)
        details |= left
    return model, details


def _half(model: onnx.ModelProto, run: RunDir) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph in float16, and details of parts in float32; `beyond_float16` is None where graph/run.py cannot run."""
    keep = beyond_float16(model, load_golden(run.golden, load_plan(run.plan)).inputs) if can_run() else None
    details = {
        "float32_layers": float32_layers(model, keep or ()),
        "beyond_float16": None if keep is None else sorted(keep),
    }
    return half_precision(model, keep or ()), details


def _changed(before: Codes, after: Codes) -> int:
    return sum(layer.input != after.layers[name].input for name, layer in before.layers.items())


def ceilings_of(slim: onnx.ModelProto) -> dict[str, float]:
    """Largest value that Clips (ReLU6) leave to the input of a layer in all of its calls, infinity without; by name."""
    makers, constants = makers_of(slim), {tensor.name: tensor for tensor in slim.graph.initializer}
    found: dict[str, float] = {}
    for node in slim.graph.node:
        layer = layer_of(node.input[1]) if node.op_type in QUANTIZED_OPS else None
        if layer is not None:
            clip, most = makers.get(node.input[0]), math.inf
            if clip is not None and clip.op_type == "Clip" and len(clip.input) > 2 and clip.input[2] in constants:
                most = float(onnx.numpy_helper.to_array(constants[clip.input[2]]))
            found[layer] = max(most, found.get(layer, most))
    return found


def promoted(
    codes: Codes,
    dialect: Dialect,
    activations: Activations = "promote",
    ceilings: Mapping[str, float] = MappingProxyType({}),
) -> Codes:
    """The codes with all activations, or for promote-8 those of 8 bits, on all codes of the container, with the plan's
    clip values.

    Args:
        ceilings: largest values of the inputs of layers; codes beyond would only need a Clip.

    An engine computes activations in 8 bits anyway: promotion drops the Clip of the coarse grid, and with it the
    rounding that the network was trained with. Weights keep their codes. In a uint8 container, 8-bit activations that
    are never negative get 255 codes instead of 127.
    """

    def promote(quantizer: Quantizer, ceiling: float = math.inf) -> Quantizer:
        low, high = dialect.container_range(quantizer.signed)
        low = low if quantizer.signed else 0
        if quantizer.code_max >= high or (activations == "promote-8" and quantizer.code_max < EIGHT_BITS):
            return quantizer
        clip = min(quantizer.step * quantizer.code_max, ceiling if ceiling > 0 else math.inf)
        return Quantizer(step=clip / high, code_min=low, code_max=high)

    layers = {
        name: replace(layer, input=promote(layer.input, ceilings.get(name, math.inf)))
        for name, layer in codes.layers.items()
    }
    adds = {name: (promote(lhs), promote(rhs)) for name, (lhs, rhs) in codes.adds.items()}
    return replace(codes, layers=layers, adds=adds)
