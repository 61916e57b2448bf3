"""Samples of steps as surfaces over channels."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Samples = Mapping[tuple[int, int], Sequence[float]]
"""Milliseconds by (inputs, outputs)."""

SMALLEST_MS = 1e-6
"""Of what takes no time that a profiler sees."""


def surface_of(samples: Samples, channels_in: Sequence[int], channels_out: Sequence[int]) -> Floats:
    """Milliseconds (I, J) at every combination of channels: the median of its samples.

    A combination that was not measured, since one end of the layer decides about the other, gets what a plane through
    all samples says (milliseconds are about linear in inputs, outputs and their product).
    """
    points = list(samples)
    median = {point: float(np.median(values)) for point, values in samples.items()}
    terms = np.array([_terms(*point) for point in points])
    plane, *_ = np.linalg.lstsq(terms, np.array([median[point] for point in points]), rcond=None)
    low, high = min(median.values()), max(median.values())
    filled = [
        [median.get((i, j), float(np.clip(_terms(i, j) @ plane, low, high))) for j in channels_out] for i in channels_in
    ]
    ms: Floats = np.maximum(np.array(filled), SMALLEST_MS)
    return ms


def _terms(inputs: float, outputs: float) -> Floats:
    return np.array([1.0, inputs, outputs, inputs * outputs])
