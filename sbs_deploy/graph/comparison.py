"""Compare outputs of one execution with reference outputs, and decide whether they pass.

Outputs of floats are judged by their error against the noise of float, outputs of integers and booleans by the part of
the values that differ. Where a network has labels and one output (N, classes), the class is judged as well.

Where two classes are closer than rounding moves the logits, the reference cannot decide the class: a value half-way
between two codes rounds either way, and the difference grows over many layers. Such a sample is undecided and does not
count against an execution that is as near to the exact answer as the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_deploy.graph.arrays import Array, Named
from sbs_train.contract.errors import SbsError
from sbs_train.contract.validation import Classes, Compared

FLOAT_DISAGREEMENT = 0.001
"""Part of the samples whose top-1, or of the integers that, may differ between PyTorch and Q/DQ in float; one is always
allowed."""
INTEGER_DISAGREEMENT = 0.01
INTEGER_ACCURACY_POINTS = 0.2
"""Percentage points that integer kernels may lose or gain; one sample is always allowed."""
ROUNDING = 4.0
"""Root mean square error of an output against float64, in units of the error of PyTorch in float32, up to which a file
differs by rounding alone. Measured on untrained networks: docs/LOG.md."""
ERROR = 1e-2
"""Root mean square error of a sample's output, relative to that of all samples, that always passes."""
FAR = 0.9
NOISE = 0.25
"""Largest root mean square error of PyTorch in float32, relative to the output, that can be rounding."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What outputs are compared with."""

    outputs: Named
    exact: Named = field(default_factory=dict)
    """The outputs in float64 for the first samples; empty if they are not known."""
    labels: Array | None = None
    """`(N)` the samples' classes; None where the samples have none."""

    @property
    def classes(self) -> Array | None:
        """The labels, if the network has one output (N, classes), else None."""
        arrays = list(self.outputs.values())
        one = len(arrays) == 1 and arrays[0].ndim == 2 and arrays[0].dtype.kind == "f"
        return self.labels if one else None


def compare(outputs: Named, reference: Reference) -> dict[str, Compared]:
    """Compare every output with the reference.

    Raises:
        SbsError: an output is missing, or has another shape.
    """
    found = {}
    for name, expected in reference.outputs.items():
        if name not in outputs:
            raise SbsError(f"output {name} is missing")
        if outputs[name].shape != expected.shape:
            raise SbsError(f"output {name} is {outputs[name].shape}, where {expected.shape} is expected")
        one = _compared if expected.dtype.kind == "f" else _compared_integers
        found[name] = one(outputs[name], expected, reference.exact.get(name), reference.classes)
    return found


def near(found: Compared, part: float) -> bool:
    """Whether an output is where the reference's own rounding explains.

    A value half-way between two codes falls either way, and the sample is far off from there on. How often, is a matter
    of luck: so a sample in the middle is held against one that the reference itself has far off.

    Args:
        part: part of the values of an output of integers that may differ.
    """
    error, rounding = (np.inf if value is None else value for value in (found.error, found.rounding))
    always = ERROR if found.values is None else allowed(found.values, part) / found.values
    return error <= max(always, ROUNDING * rounding)


def floats_pass(found: Mapping[str, Compared]) -> bool:
    """Whether a graph in float differs from its reference by no more than rounding explains."""
    return all(
        near(one, FLOAT_DISAGREEMENT)
        and (one.classes is None or one.classes.disagreeing <= allowed(one.samples, FLOAT_DISAGREEMENT))
        for one in found.values()
    )


def kernels_pass(found: Mapping[str, Compared]) -> bool:
    """Whether integer kernels differ from their reference by no more than rounding explains."""
    return all(
        near(one, INTEGER_DISAGREEMENT)
        and (
            one.classes is None
            or (
                one.classes.disagreeing <= allowed(one.samples, INTEGER_DISAGREEMENT)
                and abs(one.classes.top1_change) <= max(INTEGER_ACCURACY_POINTS, 100 / one.samples) + 1e-9
            )
        )
        for one in found.values()
    )


def failure(what: str, found: Mapping[str, Compared]) -> str:
    """Why a comparison did not pass, in words: of the output that is furthest off."""
    name, worst = max(found.items(), key=lambda item: _excess(item[1]))
    error, rounding = (np.inf if value is None else value for value in (worst.error, worst.rounding))
    if not near(worst, FLOAT_DISAGREEMENT) or worst.classes is None:
        of = "of its size" if worst.values is None else "of its values"
        return f"{what}: output {name} is off by {error:.1e} {of} (rounding: {rounding:.1e})"
    return f"{what}: {worst.classes.disagreeing} of {worst.samples} samples have another class"


def _excess(found: Compared) -> float:
    error, rounding = (np.inf if value is None else value for value in (found.error, found.rounding))
    return float(error / max(ERROR, ROUNDING * rounding))


def classes_of(found: Mapping[str, Compared]) -> Classes | None:
    """The comparison of classes; None for a network without classes."""
    return next((one.classes for one in found.values() if one.classes is not None), None)


def top1_of(outputs: Named, labels: Array | None) -> float | None:
    """Top-1 of the only output (N, classes) in percent; None without labels."""
    classes = Reference(outputs=outputs, labels=labels).classes
    return None if classes is None else percent(next(iter(outputs.values())).argmax(1) == classes)


def _compared(found: Array, expected: Array, exact: Array | None, labels: Array | None) -> Compared:
    return Compared(
        samples=len(np.atleast_1d(expected)),
        classes=None if labels is None else _classes(found, expected, exact, labels),
        max_abs_diff=_finite(float(np.abs(found - expected).max())),
        error=_finite(_quantile(found, expected if exact is None else exact, 0.5)),
        rounding=NOISE / ROUNDING if exact is None else _finite(_quantile(expected, exact, FAR)),
    )


def _compared_integers(found: Array, expected: Array, exact: Array | None, labels: Array | None) -> Compared:
    known = np.atleast_1d(expected if exact is None else exact)
    return Compared(
        samples=len(np.atleast_1d(expected)),
        values=expected.size,
        max_abs_diff=float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()),
        error=float(np.mean(found != expected)),
        rounding=float(np.mean(np.atleast_1d(expected)[: len(known)] != known)),
    )


def _classes(found: Array, expected: Array, exact: Array | None, labels: Array) -> Classes:
    agrees = (found.argmax(1) == expected.argmax(1)) & np.isfinite(found).all(1)
    undecided = ~agrees & _close(found, expected, exact)
    return Classes(
        top1=percent(found.argmax(1) == labels),
        top1_agreement=percent(agrees),
        disagreeing=int((~agrees & ~undecided).sum()),
        undecided=int(undecided.sum()),
        top1_change=percent(~undecided & (found.argmax(1) == labels))
        - percent(~undecided & (expected.argmax(1) == labels)),
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity, so None stands for it, and for what is no number."""
    return value if np.isfinite(value) else None


def _close(logits: Array, expected: Array, exact: Array | None) -> npt.NDArray[np.bool_]:
    """`(N)`, whether rounding could explain that a sample's class differs from the reference's."""
    if exact is None or not len(exact):
        return np.zeros(len(expected), bool)
    own, found = expected[: len(exact)] - exact, logits[: len(exact)] - exact
    error, found_error = rms(own), rms(found)
    if not (found_error <= ROUNDING * error and error <= NOISE * rms(exact)):
        return np.zeros(len(expected), bool)
    samples = np.arange(len(expected))
    margin = expected.max(1) - expected[samples, logits.argmax(1)]
    # Rounding moves both logits.
    return np.asarray(margin <= 2 * np.abs(own).max()) & np.isfinite(logits).all(1)


def _quantile(found: Array, exact: Array, part: float) -> float:
    """Quantile `part` of the samples' errors, over the samples with exact outputs."""
    found, exact = np.atleast_1d(found), np.atleast_1d(exact)
    differences = np.square(found[: len(exact)] - exact, dtype=np.float64)
    errors = differences.reshape(len(differences), -1).mean(1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    size = max(rms(exact), 1e-30)
    return float(np.sqrt(np.quantile(errors, part, method="higher"))) / size


def rms(values: npt.NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def allowed(count: int, part: float) -> int:
    """How many of `count` may differ if `part` of them may; at least 1."""
    return max(1, int(count * part))


def percent(hits: npt.NDArray[np.bool_]) -> float:
    """Percentage of hits."""
    return 100 * float(np.mean(hits))
