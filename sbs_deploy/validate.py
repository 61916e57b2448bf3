"""Parity: what PyTorch computed, what the ONNX files say, and what integer kernels make of it.

    codes     weights in both ONNX files equal the exported integer codes, element by element
    float     both dialects on ONNX Runtime, optimizations off (Q/DQ in float), against PyTorch's logits
    integer   the ort dialect with all optimizations (integer kernels), against PyTorch's logits

No torch here: PyTorch's side lies in golden.npz. When a comparison fails, the first layer, in the order in which they
run, whose result differs is named.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from sbs_deploy.engine.base import FloatArray
from sbs_deploy.engine.onnxruntime import Optimization, make_session
from sbs_deploy.export.codes import QuantizedLayer, load_arrays, load_codes
from sbs_deploy.export.pipeline import load_onnx
from sbs_deploy.export.qdq import LAYER_OPS, stored_codes
from sbs_deploy.names import INPUT, OUTPUT
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir

REMEDY = "sbs-deploy export"
FLOAT_DISAGREEMENT = 0.001
"""Part of the images whose top-1 may differ between PyTorch and Q/DQ in float; one image is always allowed."""
INTEGER_DISAGREEMENT = 0.01
INTEGER_ACCURACY_POINTS = 0.2
"""Percentage points that integer kernels may lose or gain; one image is always allowed."""
DIVERGENCE = 1e-2
"""Root mean square error, relative to the root mean square of the expected values, from which a layer differs."""
INTEGER_DIVERGENCE = 0.3
"""The same for integer kernels: they round the bias to the accumulator's grid, and on coarse grids a rounding that
falls the other way is a large step, of which deep networks make many."""
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One execution of one file against PyTorch's logits."""

    images: int
    top1: float
    """Percent."""
    top1_agreement: float
    """Percent of images with PyTorch's top-1 class."""
    disagreeing: int
    max_abs_diff: float
    """Largest |Δlogit|; infinite where a logit is not a number."""

    @property
    def json(self) -> dict[str, Any]:
        """JSON has no infinity: null stands for it."""
        finite = np.isfinite(self.max_abs_diff)
        return {**asdict(self), "max_abs_diff": self.max_abs_diff if finite else None}


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Outcome of `validate_run`."""

    images: int
    top1_pytorch: float
    codes_equal: bool
    float_qdq: dict[str, Comparison]
    """By dialect, optimizations off."""
    integer: Comparison
    """The ort dialect on integer kernels."""
    first_divergence: str | None
    """First layer that differs where a gate failed; None where all passed or no single layer stands out."""
    passed: bool

    def as_json(self) -> dict[str, Any]:
        """The document of `sbs-deploy validate --json`; the headline figures are the worst of the dialects."""
        worst = min(self.float_qdq.values(), key=lambda one: one.top1_agreement)
        errors = [one.json["max_abs_diff"] for one in self.float_qdq.values()]
        return {
            "passed": self.passed,
            "images": self.images,
            "codes_equal": self.codes_equal,
            "max_abs_diff": None if None in errors else max(errors),
            "top1_agreement": worst.top1_agreement,
            "agreement_integer": self.integer.top1_agreement,
            "top1_pytorch": self.top1_pytorch,
            "top1_float_qdq": worst.top1,
            "top1_integer": self.integer.top1,
            "first_divergence": self.first_divergence,
            "float_qdq": {name: one.json for name, one in self.float_qdq.items()},
            "integer": self.integer.json,
        }


def validate_run(run: RunDir) -> ValidationReport:
    """Compare and write deploy/validation.json; a failed gate is `passed=False`, not an exception.

    Raises:
        SbsError: a file is missing or damaged.
    """
    for path in (run.model_trt, run.model_ort, run.codes, run.golden):
        run.require(path, REMEDY)
    golden, codes = load_arrays(run.golden), load_codes(run.codes).layers
    missing = [key for key in ("inputs", "logits", "labels") if key not in golden]
    if missing:
        raise SbsError(f"{run.golden} lacks {missing[0]}; make it again with `{REMEDY}`")
    paths = {"trt": run.model_trt, "ort": run.model_ort}
    models = {name: load_onnx(path) for name, path in paths.items()}
    wrong_codes = {name: _wrong_codes(model, codes) for name, model in models.items()}
    compare = _comparer(golden)
    float_qdq = {name: compare(path, "none") for name, path in paths.items()}
    integer = compare(run.model_ort, "all")
    images = len(golden["labels"])
    top1 = _percent(golden["logits"].argmax(1) == golden["labels"])
    float_passed = {name: one.disagreeing <= _allowed(images, FLOAT_DISAGREEMENT) for name, one in float_qdq.items()}
    integer_passed = integer.disagreeing <= _allowed(images, INTEGER_DISAGREEMENT) and (
        abs(integer.top1 - top1) <= max(INTEGER_ACCURACY_POINTS, 100 / images) + 1e-9
    )
    first: str | None = None
    for name, model in models.items():
        if first is None and wrong_codes[name]:
            first = wrong_codes[name][0]
        if first is None and not float_passed[name]:
            first = first_divergence(model, golden)
    if first is None and not integer_passed:
        first = first_integer_divergence(run.model_ort, golden)
    report = ValidationReport(
        images=images,
        top1_pytorch=top1,
        codes_equal=not any(wrong_codes.values()),
        float_qdq=float_qdq,
        integer=integer,
        first_divergence=first,
        passed=not any(wrong_codes.values()) and all(float_passed.values()) and integer_passed,
    )
    rundir.write_json(run.validation, report.as_json())
    rundir.write_manifest(run.validation, validation_sources(run))
    return report


def validation_is_current(run: RunDir) -> bool:
    """Whether validation.json judged the very files that lie here now, made from the plan that lies here."""
    files = (run.model_ort, run.model_trt, run.golden)
    return all(path.is_file() for path in (*files, run.plan)) and rundir.is_current(
        run.validation, validation_sources(run)
    )


def validation_sources(run: RunDir) -> dict[str, str]:
    """What a verdict depends on: the hashes of the files it judged and of the plan they were made from."""
    return {path.name: rundir.sha256_of(path) for path in (run.plan, run.model_ort, run.model_trt, run.golden)}


def first_divergence(model: onnx.ModelProto, golden: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The first layer of the graph whose float result differs from PyTorch's; None if none does."""
    taps = {key.removeprefix("tap/"): value for key, value in golden.items() if key.startswith("tap/")}
    outputs = {name: _written(model, node) for name, node in _layers(model) if name in taps}
    if not outputs:
        return None
    images = np.asarray(golden["inputs"][: len(next(iter(taps.values())))], np.float32)
    found = _run_with_outputs(model, list(outputs.values()), images, "none")
    return next((name for name, tensor in outputs.items() if _differs(found[tensor], taps[name])), None)


def first_integer_divergence(path: Path, golden: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The first layer whose input codes differ between integer kernels and Q/DQ in float.

    Codes are asked for, not results: an output between a convolution and its QuantizeLinear would undo their fusion.
    """
    model = load_onnx(path)
    makers = {output: node for node in model.graph.node for output in node.output}
    inputs = {name: makers[node.input[0]].input[0] for name, node in _layers(model) if node.input[0] in makers}
    images = np.asarray(golden["inputs"][:BATCH], np.float32)
    tensors = sorted(set(inputs.values()))
    expected, found = (_run_with_outputs(model, tensors, images, level) for level in ("none", "all"))
    return next(
        (name for name, tensor in inputs.items() if _differs(found[tensor], expected[tensor], INTEGER_DIVERGENCE)), None
    )


def _written(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The tensor that a layer writes: a MatMul's bias is an addition of a constant behind it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    output = str(node.output[0])
    if node.op_type == "MatMul":
        for reader in model.graph.node:
            if reader.op_type == "Add" and output in reader.input and constants.intersection(reader.input):
                return str(reader.output[0])
    return output


def _wrong_codes(model: onnx.ModelProto, codes: Mapping[str, QuantizedLayer]) -> list[str]:
    """Layers, in the order of the graph, whose weights are not the exported codes; then those that are not there."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {name: node.op_type for name, node in _layers(model)}
    wrong = []
    for name in [*(n for n in kinds if n in codes), *(n for n in codes if n not in kinds)]:
        tensor = arrays.get(f"{name}.weight")
        found = numpy_helper.to_array(tensor) if tensor is not None else np.zeros(0)
        expected = stored_codes(kinds.get(name, ""), codes[name].codes)
        if found.dtype != np.int8 or not np.array_equal(found, expected):
            wrong.append(name)
    return wrong


def _layers(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """(torch name, node) of every convolution and linear layer in graph order, known by its weights' name."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in LAYER_OPS:
            weight = node.input[1]
            weight = makers[weight].input[0] if weight in makers else weight
            yield weight.removesuffix(".weight"), node


def _comparer(golden: Mapping[str, npt.NDArray[Any]]) -> Callable[[Path, Optimization], Comparison]:
    inputs, expected, labels = (golden[key] for key in ("inputs", "logits", "labels"))

    def compare(path: Path, optimization: Optimization) -> Comparison:
        session = make_session(path, threads=0, optimization=optimization)
        try:
            parts = [session.run([OUTPUT], {INPUT: batch})[0] for batch in _batches(inputs)]
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise SbsError(f"{path} does not run ({reason}); make it again with `{REMEDY}`") from error
        logits = np.concatenate(parts)
        if logits.shape != expected.shape:
            raise SbsError(f"{path}: logits {logits.shape}, golden.npz has {expected.shape}; run `{REMEDY}`")
        difference = float(np.abs(logits - expected).max())
        agrees = (logits.argmax(1) == expected.argmax(1)) & np.isfinite(logits).all(1)
        return Comparison(
            images=len(labels),
            top1=_percent(logits.argmax(1) == labels),
            top1_agreement=_percent(agrees),
            disagreeing=int((~agrees).sum()),
            max_abs_diff=difference if np.isfinite(difference) else float("inf"),
        )

    return compare


def _run_with_outputs(
    model: onnx.ModelProto, tensors: list[str], images: FloatArray, level: Optimization
) -> dict[str, npt.NDArray[Any]]:
    """The named inner tensors, by making them outputs of a copy in memory."""
    import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(known[name] for name in tensors if name not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if level == "none":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(tensors, session.run(tensors, {INPUT: images}), strict=True))


def _differs(found: npt.NDArray[Any], expected: npt.NDArray[Any], threshold: float = DIVERGENCE) -> bool:
    """Whether the relative root mean square error passes the threshold; NaN and another shape do."""
    if found.shape != expected.shape:
        return True
    reference = expected.astype(np.float64)
    error = np.sqrt(np.mean((found - reference) ** 2)) / max(np.sqrt(np.mean(reference**2)), 1e-12)
    return not error <= threshold


def _batches(inputs: npt.NDArray[Any]) -> Iterator[FloatArray]:
    for start in range(0, len(inputs), BATCH):
        yield np.ascontiguousarray(inputs[start : start + BATCH], np.float32)


def _allowed(images: int, part: float) -> int:
    return max(1, int(images * part))


def _percent(hits: npt.NDArray[np.bool_]) -> float:
    return 100 * float(np.mean(hits))
