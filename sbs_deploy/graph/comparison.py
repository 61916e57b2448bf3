"""Logits of one execution against those it should give, and what is held against it.

Where two classes are closer together than rounding moves the logits, the reference itself does not know the answer: a
value half-way between two codes falls either way, and through many layers that grows. Such an image is undecided, which
is not held against an execution that is as near to the exact answer as the reference is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_deploy.graph.names import FloatArray
from sbs_train.contract.results import Compared

FLOAT_DISAGREEMENT = 0.001
"""Part of the images whose top-1 may differ between PyTorch and Q/DQ in float; one image is always allowed."""
INTEGER_DISAGREEMENT = 0.01
INTEGER_ACCURACY_POINTS = 0.2
"""Percentage points that integer kernels may lose or gain; one image is always allowed."""
ROUNDING = 4.0
"""Root mean square error of the logits against float64, in those of PyTorch in float32, up to which a file differs by
rounding alone. Measured on untrained networks: docs/LOG.md."""
ERROR = 1e-2
"""Root mean square error of an image's logits, in that of all logits, that is held against nothing."""
FAR = 0.9
NOISE = 0.25
"""Root mean square error of PyTorch in float32, in the logits' own, up to which it can be rounding."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One execution of one file against a reference: PyTorch's logits, unless something else is said."""

    images: int
    top1: float
    """Percent."""
    top1_agreement: float
    """Percent of images with the reference's top-1 class."""
    disagreeing: int
    """Images with another class than the reference's, the undecided ones left out."""
    undecided: int
    """Images with another class where the reference's own rounding could have changed it too."""
    top1_change: float
    """Percentage points against the reference's top-1, the undecided images left out."""
    max_abs_diff: float
    """Largest |Δlogit|; infinite where a logit is not a number."""
    error: float
    """Median over images of |Δlogit| against the exact answers: root mean square, relative to that of the answers."""
    rounding: float
    """The reference's own |Δlogit| on an image that is far off: one in ten is worse. What NOISE allows where there
    are no exact answers."""

    @property
    def near(self) -> bool:
        """Whether logits are where the reference's own rounding explains.

        A value half-way between two codes falls either way, and the image is far off from there on. How often, is a
        matter of luck: so an image in the middle is held against one that the reference itself has far off.
        """
        return self.error <= max(ERROR, ROUNDING * self.rounding)

    @property
    def record(self) -> Compared:
        """An entry of validation.json; JSON has no infinity, so None stands for it."""
        return Compared.model_validate(
            {name: None if value == np.inf else value for name, value in asdict(self).items()}
        )


def compare_logits(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> Comparison:
    """Compare logits (N, classes) with a reference.

    Args:
        golden: the reference's `logits`, the `labels`, and of the first images the `exact` logits.
    """
    expected, labels = golden["logits"], golden["labels"]
    difference = float(np.abs(logits - expected).max())
    agrees = (logits.argmax(1) == expected.argmax(1)) & np.isfinite(logits).all(1)
    undecided = ~agrees & _close(logits, golden)
    return Comparison(
        images=len(labels),
        top1=percent(logits.argmax(1) == labels),
        top1_agreement=percent(agrees),
        disagreeing=int((~agrees & ~undecided).sum()),
        undecided=int(undecided.sum()),
        top1_change=percent(~undecided & (logits.argmax(1) == labels))
        - percent(~undecided & (expected.argmax(1) == labels)),
        max_abs_diff=difference if np.isfinite(difference) else float("inf"),
        error=_quantile(logits, golden, 0.5),
        rounding=_quantile(expected, golden, FAR) if "exact" in golden else NOISE / ROUNDING,
    )


def kernels_pass(found: Comparison) -> bool:
    """Whether integer kernels differ from their reference by no more than rounding explains."""
    return (
        found.near
        and found.disagreeing <= allowed(found.images, INTEGER_DISAGREEMENT)
        and (abs(found.top1_change) <= max(INTEGER_ACCURACY_POINTS, 100 / found.images) + 1e-9)
    )


def failure(what: str, found: Comparison) -> str:
    """Why a comparison did not pass, in words."""
    if not found.near:
        return f"{what}: logits are off by {found.error:.1e} of their size (rounding: {found.rounding:.1e})"
    return f"{what}: {found.disagreeing} of {found.images} images have another class"


def _close(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Whether each image's class of `logits` is as good as the reference's, as far as rounding lets one tell."""
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
    # Rounding moves each of the two logits.
    return np.asarray(margin <= 2 * np.abs(own).max()) & np.isfinite(logits).all(1)


def _quantile(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]], part: float) -> float:
    """The error that this part of the images stays below: of those with exact answers, or of all."""
    exact = golden.get("exact", golden["logits"])
    errors = np.square(logits[: len(exact)] - exact, dtype=np.float64).mean(1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    size = max(rms(exact), 1e-30)
    return float(np.sqrt(np.quantile(errors, part, method="higher"))) / size


def rms(values: npt.NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def allowed(images: int, part: float) -> int:
    """How many of the images may differ."""
    return max(1, int(images * part))


def percent(hits: npt.NDArray[np.bool_]) -> float:
    """Part of the hits."""
    return 100 * float(np.mean(hits))
