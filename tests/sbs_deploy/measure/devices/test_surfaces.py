"""Surfaces against the functions that the samples come from."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.devices.surfaces import SMALLEST_MS, surface_of
from sbs_train.contract.latency import Surfaces

INS, OUTS = [8, 16, 32], [16, 48, 64]


def interpolated(ms: npt.NDArray[np.float64], inputs: float, outputs: float) -> float:
    """As the search does."""
    surfaces = Surfaces.of(np.array([INS]) / INS[-1], np.array([OUTS]) / OUTS[-1], ms[None])
    return float(surfaces.at(np.array([inputs / INS[-1]]), np.array([outputs / OUTS[-1]]))[0])


@given(*[st.floats(0, 3)] * 4, st.floats(8, 32), st.floats(16, 64))
def test_a_bilinear_cost_is_found_exactly(a: float, b: float, c: float, d: float, i: float, o: float) -> None:
    def cost(inputs: float, outputs: float) -> float:
        return 0.01 + a + b * inputs + c * outputs + d * inputs * outputs

    samples = {(x, y): [cost(x, y)] for x in INS for y in OUTS}
    ms = surface_of(samples, INS, OUTS)
    assert np.isclose(interpolated(ms, i, o), cost(i, o))
    missing = surface_of({point: ms for point, ms in samples.items() if point != (16, 48)}, INS, OUTS)
    np.testing.assert_allclose(missing, ms, rtol=1e-6)


def test_the_median_of_samples_counts_and_nothing_is_free() -> None:
    ms = surface_of({(1, 1): [1.0, 2.0, 50.0], (2, 1): [0.0]}, [1, 2], [1])
    assert ms.tolist() == [[2.0], [SMALLEST_MS]]


def test_beyond_the_measured_channels_it_is_constant() -> None:
    ms = np.array([[1.0, 2.0, 3.0], [3.0, 5.0, 7.0], [4.0, 8.0, 9.0]])
    assert np.isclose(interpolated(ms, 4, 48), 2.0)
    assert np.isclose(interpolated(ms, 12, 8), 2.0)
