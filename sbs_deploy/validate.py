"""Parity: what PyTorch computed, what the ONNX files say, and what integer kernels make of it.

    codes     weights in both ONNX files equal the exported integer codes, element by element
    float     both dialects on ONNX Runtime, optimizations off (Q/DQ in float), against PyTorch's logits
    integer   the ort dialect with all optimizations (integer kernels), against PyTorch's logits

No torch here: PyTorch's side lies in golden.npz, in float32 as trained, and for the first images in float64. Where two
classes are closer together than float32 rounding moves the logits, PyTorch itself does not know the answer: a value
half-way between two codes falls either way, and through many layers that grows. Such an image is undecided, which is
not held against a file that is as near to float64 as PyTorch in float32 is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from sbs_deploy.divergence import first_divergence, first_integer_divergence, layers_of
from sbs_deploy.engine.base import FloatArray
from sbs_deploy.engine.onnxruntime import Optimization, make_session
from sbs_deploy.export.codes import QuantizedLayer, load_codes, load_golden
from sbs_deploy.export.pipeline import load_onnx
from sbs_deploy.export.qdq import stored_codes
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
ROUNDING = 4.0
"""Root mean square error of the logits against float64, in those of PyTorch in float32, up to which a file differs by
rounding alone. Measured on untrained networks: docs/LOG.md."""
NOISE = 0.25
"""Root mean square error of PyTorch in float32, in the logits' own, up to which it can be rounding."""
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
    """Images with another class than PyTorch's, the undecided ones left out."""
    undecided: int
    """Images with another class where PyTorch's own rounding could have changed it too."""
    top1_change: float
    """Percentage points against PyTorch's top-1, the undecided images left out."""
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
            "undecided": max(one.undecided for one in (*self.float_qdq.values(), self.integer)),
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
    golden, codes = load_golden(run.golden), load_codes(run.codes).layers
    paths = {"trt": run.model_trt, "ort": run.model_ort}
    models = {name: load_onnx(path) for name, path in paths.items()}
    wrong_codes = {name: _wrong_codes(model, codes) for name, model in models.items()}
    compare = comparer(golden)
    float_qdq = {name: compare(path, "none") for name, path in paths.items()}
    integer = compare(run.model_ort, "all")
    images = len(golden["labels"])
    top1 = _percent(golden["logits"].argmax(1) == golden["labels"])
    float_passed = {name: one.disagreeing <= _allowed(images, FLOAT_DISAGREEMENT) for name, one in float_qdq.items()}
    integer_passed = integer.disagreeing <= _allowed(images, INTEGER_DISAGREEMENT) and (
        abs(integer.top1_change) <= max(INTEGER_ACCURACY_POINTS, 100 / images) + 1e-9
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


def _wrong_codes(model: onnx.ModelProto, codes: Mapping[str, QuantizedLayer]) -> list[str]:
    """Layers, in the order of the graph, whose weights are not the exported codes; then those that are not there."""
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


def comparer(golden: Mapping[str, npt.NDArray[Any]]) -> Callable[[Path, Optimization], Comparison]:
    """A function that runs an ONNX file on golden.npz's images and compares it with PyTorch's logits."""
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
        undecided = ~agrees & _close(logits, golden)
        return Comparison(
            images=len(labels),
            top1=_percent(logits.argmax(1) == labels),
            top1_agreement=_percent(agrees),
            disagreeing=int((~agrees & ~undecided).sum()),
            undecided=int(undecided.sum()),
            top1_change=_percent(~undecided & (logits.argmax(1) == labels))
            - _percent(~undecided & (expected.argmax(1) == labels)),
            max_abs_diff=difference if np.isfinite(difference) else float("inf"),
        )

    return compare


def _close(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Of every image, whether its class of `logits` is as good as PyTorch's, as far as float32 can tell."""
    expected = golden["logits"]
    exact = golden.get("exact", expected[:0].astype(np.float64))
    if not len(exact):
        return np.zeros(len(expected), bool)
    own, found = expected[: len(exact)] - exact, logits[: len(exact)] - exact
    error, found_error = _rms(own), _rms(found)
    if not (found_error <= ROUNDING * error and error <= NOISE * _rms(exact)):
        return np.zeros(len(expected), bool)
    images = np.arange(len(expected))
    margin = expected.max(1) - expected[images, logits.argmax(1)]
    # Rounding moves each of the two logits.
    return np.asarray(margin <= 2 * np.abs(own).max()) & np.isfinite(logits).all(1)


def _batches(inputs: npt.NDArray[Any]) -> Iterator[FloatArray]:
    for start in range(0, len(inputs), BATCH):
        yield np.ascontiguousarray(inputs[start : start + BATCH], np.float32)


def _rms(values: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _allowed(images: int, part: float) -> int:
    return max(1, int(images * part))


def _percent(hits: npt.NDArray[np.bool_]) -> float:
    return 100 * float(np.mean(hits))
