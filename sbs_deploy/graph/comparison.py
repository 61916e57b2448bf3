"""Compare logits of one execution with reference logits, and decide whether they pass.

Where two classes are closer than rounding moves the logits, the reference cannot decide the class: a value half-way
between two codes rounds either way, and the difference grows over many layers. Such an image is undecided and does not
count against an execution that is as near to the exact answer as the reference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_deploy.graph.names import FloatArray
from sbs_train.contract.validation import Compared

FLOAT_DISAGREEMENT = 0.001
"""Part of the images whose top-1 may differ between PyTorch and Q/DQ in float; one image is always allowed."""
INTEGER_DISAGREEMENT = 0.01
INTEGER_ACCURACY_POINTS = 0.2
"""Percentage points that integer kernels may lose or gain; one image is always allowed."""
ROUNDING = 4.0
"""Root mean square error of the logits against float64, in units of the error of PyTorch in float32, up to which a file
differs by rounding alone. Measured on untrained networks: docs/LOG.md."""
ERROR = 1e-2
"""Root mean square error of an image's logits, relative to that of all logits, that always passes."""
FAR = 0.9
NOISE = 0.25
"""Largest root mean square error of PyTorch in float32, relative to the logits, that can be rounding."""


def compare_logits(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> Compared:
    """Compare logits (N, classes) with a reference.

    Args:
        golden: the reference's `logits`, the `labels`, and for the first images the `exact` logits.
    """
    expected, labels = golden["logits"], golden["labels"]
    difference = float(np.abs(logits - expected).max())
    agrees = (logits.argmax(1) == expected.argmax(1)) & np.isfinite(logits).all(1)
    undecided = ~agrees & _close(logits, golden)
    return Compared(
        images=len(labels),
        top1=percent(logits.argmax(1) == labels),
        top1_agreement=percent(agrees),
        disagreeing=int((~agrees & ~undecided).sum()),
        undecided=int(undecided.sum()),
        top1_change=percent(~undecided & (logits.argmax(1) == labels))
        - percent(~undecided & (expected.argmax(1) == labels)),
        max_abs_diff=_finite(difference),
        error=_finite(_quantile(logits, golden, 0.5)),
        rounding=_finite(_quantile(expected, golden, FAR)) if "exact" in golden else NOISE / ROUNDING,
    )


def near(found: Compared) -> bool:
    """Whether logits are where the reference's own rounding explains.

    A value half-way between two codes falls either way, and the image is far off from there on. How often, is a matter
    of luck: so an image in the middle is held against one that the reference itself has far off.
    """
    error, rounding = (np.inf if value is None else value for value in (found.error, found.rounding))
    return error <= max(ERROR, ROUNDING * rounding)


def kernels_pass(found: Compared) -> bool:
    """Whether integer kernels differ from their reference by no more than rounding explains."""
    return (
        near(found)
        and found.disagreeing <= allowed(found.images, INTEGER_DISAGREEMENT)
        and (abs(found.top1_change) <= max(INTEGER_ACCURACY_POINTS, 100 / found.images) + 1e-9)
    )


def failure(what: str, found: Compared) -> str:
    """Why a comparison did not pass, in words."""
    if not near(found):
        error, rounding = (np.inf if value is None else value for value in (found.error, found.rounding))
        return f"{what}: logits are off by {error:.1e} of their size (rounding: {rounding:.1e})"
    return f"{what}: {found.disagreeing} of {found.images} images have another class"


def _finite(value: float) -> float | None:
    """JSON has no infinity, so None stands for it, and for what is no number."""
    return value if np.isfinite(value) else None


def _close(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """`(N)`, whether rounding could explain that an image's class differs from the reference's."""
    expected = golden["logits"]
    exact = golden.get("exact", expected[:0].astype(np.float64))
    if not len(exact):
        return np.zeros(len(expected), bool)
    own, found = expected[: len(exact)] - exact, logits[: len(exact)] - exact
    error, found_error = rms(own), rms(found)
    if not (found_error <= ROUNDING * error and error <= NOISE * rms(exact)):
        return np.zeros(len(expected), bool)
    images = np.arange(len(expected))
    margin = expected.max(1) - expected[images, logits.argmax(1)]
    # Rounding moves both logits.
    return np.asarray(margin <= 2 * np.abs(own).max()) & np.isfinite(logits).all(1)


def _quantile(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]], part: float) -> float:
    """Quantile `part` of the images' errors: over the images with exact logits, or over all."""
    exact = golden.get("exact", golden["logits"])
    errors = np.square(logits[: len(exact)] - exact, dtype=np.float64).mean(1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    size = max(rms(exact), 1e-30)
    return float(np.sqrt(np.quantile(errors, part, method="higher"))) / size


def rms(values: npt.NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def allowed(images: int, part: float) -> int:
    """How many of `images` may differ if `part` of them may; at least 1."""
    return max(1, int(images * part))


def percent(hits: npt.NDArray[np.bool_]) -> float:
    """Percentage of hits."""
    return 100 * float(np.mean(hits))
