"""Parity of PyTorch, the ONNX files and integer kernels.

    codes     weights in both ONNX files equal the exported integer codes, element by element
    identity  the slim graph, and both dialects without their quantizers, against the float network's outputs; every
              quantizer against the plan's
    float     both dialects node by node (Q/DQ in float) against PyTorch's outputs
    integer   the ort dialect on integer kernels against PyTorch's outputs

Every output decides by its error, and where there are labels by its class.
validate/engines.py compares engines built for a GPU. No torch is needed: golden.npz holds PyTorch's outputs in float32,
and for the first samples in float64.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from sbs_deploy.backends.base import outputs_in_parts
from sbs_deploy.backends.runtime import open_engine
from sbs_deploy.backends.spec import DEFAULT_BACKEND
from sbs_deploy.export.codes import Codes, QuantizedLayer, load_codes
from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_deploy.export.qdq import stored_codes
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.comparison import classes_of, compare, failure, floats_pass, kernels_pass, top1_of
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.legalise.graph import legal_answers
from sbs_deploy.validate.divergence import first_divergence, first_integer_divergence, layers_of
from sbs_deploy.validate.engines import engine_verdicts
from sbs_deploy.validate.float_parity import float_outputs, float_parity, parity_failures
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Quantizer
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Compared, Validation, read_validation, write_validation

REMEDY = "sbs-deploy export"
BATCH = 250


def validate_run(run: RunDir) -> Validation:
    """Compare the ONNX files and write deploy/validation.json; a failed gate is `passed=False`, not an exception.

    Raises:
        SbsError: a file is missing or damaged, or the weights changed since the export.
    """
    if rundir.manifest_path(run.weights).is_file():  # a bundle has no weights
        rundir.require_whole(run.weights, f"sbs-train --resume --out {run.root}")
    for path in (run.model_trt, run.model_ort, run.model_slim, run.codes, run.golden):
        rundir.require_whole(path, REMEDY)
    plan = load_plan(run.plan)
    golden, codes = load_golden(run.golden, plan), load_codes(run.codes)
    paths = {"trt": run.model_trt, "ort": run.model_ort}
    models = {name: load_onnx(path) for name, path in paths.items()}
    unlike = _unlike_plan(codes, plan)
    wrong_codes = {name: _wrong_codes(model, codes.layers) for name, model in models.items()}
    identity = float_parity(load_onnx(run.model_slim), models, codes, golden)
    float_qdq = {
        name: _comparison(paths[name], float_outputs(model, golden.inputs, name), golden)
        for name, model in models.items()
    }
    integer = _integer_comparison(DEFAULT_BACKEND.model(run), golden)
    float_failures = {
        name: failure(f"model.{name}.onnx", one) for name, one in float_qdq.items() if not floats_pass(one)
    }
    failures = [
        *([f"{run.codes.name}: {unlike[0]} is not quantized as in the plan"] if unlike else []),
        *(
            f"model.{name}.onnx: the weights of {wrong[0]} are not the codes"
            for name, wrong in wrong_codes.items()
            if wrong
        ),
        *parity_failures(identity),
        *float_failures.values(),
        *([] if kernels_pass(integer) else [failure("integer kernels", integer)]),
    ]
    wrong = [unlike, *wrong_codes.values()]
    first = next((names[0] for names in wrong if names), identity.first_divergence)
    for name in float_failures:
        first = first or first_divergence(models[name], golden)
    if first is None and not kernels_pass(integer):
        first = first_integer_divergence(DEFAULT_BACKEND.model(run), golden)
    compared = [one for outputs in float_qdq.values() for one in outputs.values()]
    largest = [one.max_abs_diff for one in compared if one.max_abs_diff is not None]
    chosen = [one.classes for one in compared if one.classes is not None]
    worst, kernels = min(chosen, key=lambda one: one.top1_agreement, default=None), classes_of(integer)
    report = Validation(
        passed=not failures,
        samples=golden.samples,
        codes_equal=not any(wrong_codes.values()),
        max_abs_diff=max(largest) if len(largest) == len(compared) else None,
        top1_agreement=worst.top1_agreement if worst else None,
        undecided=max((one.undecided for one in (*chosen, kernels) if one), default=None),
        agreement_integer=kernels.top1_agreement if kernels else None,
        top1_pytorch=top1_of(golden.outputs, golden.labels),
        top1_float_qdq=worst.top1 if worst else None,
        top1_integer=kernels.top1 if kernels else None,
        first_divergence=first,
        float_qdq=float_qdq,
        integer=integer,
        identity=identity,
        failures=tuple(failures),
        graphs={},
    )
    _save(run, report)
    return report


def with_engines(run: RunDir, report: Validation) -> Validation:
    """The report with verdicts on what was built for GPUs and answers of other graphs, in validation.json as well.

    Engines that cannot run on this machine get a note, and do not fail.

    Raises:
        SbsError: a file is missing or damaged.
    """
    engines, graphs = engine_verdicts(run), legal_answers(run)
    if not engines and not graphs:
        return report
    failed = [one for one in engines if one.passed is False]
    first = next((one.first_divergence for one in failed if one.first_divergence), None)
    judged = report.model_copy(
        update={
            "engines": tuple(engines),
            "graphs": graphs,
            "first_divergence": report.first_divergence or first,
            "passed": report.passed and not failed,
        }
    )
    _save(run, judged)
    return judged


def note_graphs(run: RunDir) -> None:
    """Write the answers of the run's legalised graphs into validation.json.

    Raises:
        SbsError: a file is missing or damaged.
    """
    before = read_validation(run)
    if before is not None and before.graphs != (graphs := legal_answers(run)):
        _save(run, before.model_copy(update={"graphs": graphs}))


def _save(run: RunDir, report: Validation) -> None:
    write_validation(report, run)
    rundir.write_manifest(run.validation, validation_sources(run))


def validation_is_current(run: RunDir) -> bool:
    """Whether validation.json is about the current files and the current plan."""
    return all(path.is_file() for path in _judged(run)) and rundir.is_current(run.validation, validation_sources(run))


def validation_sources(run: RunDir) -> dict[str, str]:
    """Inputs of a validation: hashes of the validated files and of their plan."""
    return {path.name: rundir.sha256_of(path) for path in _judged(run)}


def _judged(run: RunDir) -> tuple[Path, ...]:
    return run.plan, run.model_ort, run.model_trt, run.model_slim, run.codes, run.golden


def _unlike_plan(codes: Codes, plan: Plan) -> list[str]:
    """Layers whose input or output is not quantized as the plan says."""

    def ends(*quantizers: Quantizer | None) -> list[tuple[np.float32, int, int] | None]:
        return [None if q is None else (np.float32(q.step), q.code_min, q.code_max) for q in quantizers]

    inputs, outputs = (
        {row.name: plan.quantizer_a(row) for row in plan.layers if row.quantized},
        plan.output_quantizers(),
    )
    return [
        name
        for name, layer in codes.layers.items()
        if name not in inputs or ends(layer.input, layer.output) != ends(inputs[name], outputs.get(name))
    ]


def _wrong_codes(model: onnx.ModelProto, codes: Mapping[str, QuantizedLayer]) -> list[str]:
    """Layers whose weights differ from the exported codes, in graph order; then missing layers."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {name: node.op_type for name, node in layers_of(model)}
    wrong = []
    for name in [*(n for n in kinds if n in codes), *(n for n in codes if n not in kinds)]:
        tensor = arrays.get(f"{name}.weight")
        found = numpy_helper.to_array(tensor) if tensor is not None else np.zeros(0)
        expected = stored_codes(kinds.get(name, ""), codes[name].codes)
        if found.dtype != np.int8 or not np.array_equal(found, expected):
            wrong.append(name)
    return wrong


def _integer_comparison(path: Path, golden: GoldenArrays) -> dict[str, Compared]:
    """The file on integer kernels against PyTorch's outputs."""
    with open_engine(path, DEFAULT_BACKEND, "int8", 0, built=False) as engine:
        return _comparison(path, outputs_in_parts(engine, golden.inputs, BATCH), golden)


def _comparison(path: Path, outputs: Named, golden: GoldenArrays) -> dict[str, Compared]:
    try:
        return compare(outputs, golden.reference)
    except SbsError as error:
        raise SbsError(f"{path} is not what golden.npz is of: {error}; run `{REMEDY}`") from error
