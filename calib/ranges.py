"""Range estimators: arrays in, floats out.

`Samples` watches a tensor over many batches; `min_max`, `percentile` and `mse` turn its samples into a clip value,
the largest magnitude that a quantizer represents.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

SAMPLES_PER_UPDATE = 65536


class Samples:
    """Exact extremes and an even subsample of a tensor's values over many batches."""

    def __init__(self) -> None:
        self.minimum = np.inf
        self.maximum = -np.inf
        self._parts: list[npt.NDArray[np.float32]] = []

    def update(self, x: Array) -> None:
        """Add one batch, of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = np.asarray(x, np.float32).ravel()
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("a value is not finite; the network or its input is broken")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        # An odd stride visits all channels and rows.
        stride = max(1, len(flat) // SAMPLES_PER_UPDATE) | 1
        self._parts.append(flat[::stride].copy())

    @property
    def signed(self) -> bool:
        """Whether a negative value was seen."""
        return self.minimum < 0

    def magnitudes(self) -> npt.NDArray[np.float32]:
        """|x| of the subsample.

        Raises:
            ValueError: nothing was added yet.
        """
        return np.abs(self.values())

    def values(self) -> npt.NDArray[np.float32]:
        """The subsample.

        Raises:
            ValueError: nothing was added yet.
        """
        if not self._parts:
            raise ValueError("no values were seen; calibrate with at least one batch")
        return np.concatenate(self._parts)


def min_max(samples: Samples) -> float:
    """The largest magnitude seen."""
    return max(abs(samples.minimum), abs(samples.maximum))


def percentile(samples: Samples, q: float) -> float:
    """The q-th percentile (0..100) of |x|; if that is 0, the q-th percentile of the non-zero values."""
    magnitudes = samples.magnitudes()
    clip = float(np.percentile(magnitudes, q))
    if clip == 0 and magnitudes.any():
        clip = float(np.percentile(magnitudes[magnitudes > 0], q))
    return clip


def mse(samples: Samples, steps: int, *, odd: bool = False, candidates: int = 100) -> float:
    """The clip value whose grid of `steps` equal steps from 0 rounds |x| with the least mean squared error.

    Tries `candidates` clip values in equal ratios, from 1/256 of the maximum to the maximum: equal ratios stay fine
    near small values even where a few outliers are large.

    Args:
        odd: only odd multiples of a step are levels.
    """
    x = samples.magnitudes()
    if len(x) > SAMPLES_PER_UPDATE:
        x = x[:: len(x) // SAMPLES_PER_UPDATE]
    best, best_error = 0.0, np.inf
    if not x.any():
        return best
    # Scaling by a power of two is exact, and keeps squares of huge and tiny values in float32.
    unit = 2.0 ** np.frexp(min_max(samples))[1]
    x = (x / unit).astype(np.float32)
    for clip in np.geomspace(min_max(samples) / 256, min_max(samples), candidates):
        step = clip / unit / steps
        nearest = 2 * np.floor(x / (2 * step)) + 1 if odd else np.round(x / step)
        error = float(np.mean((x - np.minimum(nearest, steps) * step) ** 2))
        if error < best_error:
            best, best_error = float(clip), error
    return best


def mse_range(samples: Samples, steps: int, candidates: int = 24) -> tuple[float, float]:
    """The range, zero in it, whose grid of `steps` equal steps rounds x with the least mean squared error.

    Shrinks one end after the other from the least and the largest value, in equal ratios down to 1/16.
    """
    x = samples.values()
    x = x[:: max(1, len(x) // SAMPLES_PER_UPDATE)]
    ends = [min(samples.minimum, 0.0), max(samples.maximum, 0.0)]
    # Scaling by a power of two is exact, and keeps squares of huge and tiny values in float32.
    unit = 2.0 ** np.frexp(max(abs(end) for end in ends))[1]
    x = (x / unit).astype(np.float32)

    def error(low: float, high: float) -> float:
        step = max((high - low) / unit / steps, 1e-30)
        rounded = np.clip(np.round(x / step), round(low / unit / step), round(high / unit / step)) * step
        return float(np.mean((x - rounded) ** 2))

    for side in (1, 0, 1):
        if ends[side]:
            tried = [[*ends[:side], end, *ends[side + 1 :]] for end in ends[side] * np.geomspace(1, 1 / 16, candidates)]
            ends = min(tried, key=lambda pair: error(*pair))
    return float(ends[0]), float(ends[1])
