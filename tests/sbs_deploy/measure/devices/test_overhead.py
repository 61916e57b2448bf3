"""What a profiler adds to a node, from networks with and without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.devices.overhead import RESOLUTION_MS, Totals, node_overhead_ms


def variants(factor, overhead_ms, sizes, nodes, noise=0.0, shortest_ms=1.0, fixed_ms=0.0):
    """Networks whose layers together take `sizes` milliseconds."""
    rng = np.random.default_rng(0)
    return [
        Totals(
            whole_ms=fixed_ms + factor * ms * (1 + noise * rng.standard_normal()),
            profiled_ms=ms + overhead_ms * n,
            nodes=n,
            shortest_ms=shortest_ms + overhead_ms,
        )
        for ms, n in zip(sizes, nodes, strict=True)
    ]


@given(
    st.floats(0.5, 1.5),
    st.floats(-0.9, 20.0).filter(lambda us: abs(us) > 1e-3),
    st.lists(st.floats(0.01, 20), min_size=4, max_size=40, unique=True),
)
def test_it_is_found_from_layers_that_take_less_in_as_many_nodes(factor, overhead_us, sizes):
    sizes = [*sizes, 0.005, 0.01, 20.0]
    found = node_overhead_ms([variants(factor, overhead_us / 1e3, sizes, [50] * len(sizes), shortest_ms=0.001)])
    assert found == pytest.approx(overhead_us / 1e3, rel=1e-3, abs=1e-6)


def test_it_is_found_from_networks_with_more_nodes_and_noise():
    sizes, nodes = np.tile(np.linspace(0.15, 0.21, 16), 2), [59] * 16 + [125] * 16
    found = node_overhead_ms([variants(0.9, 0.0025, sizes + np.array(nodes) * 4e-4, nodes, noise=0.02)])
    assert found == pytest.approx(0.0025, rel=0.15)


def test_it_is_one_for_networks_with_factors_of_their_own():
    small = variants(0.8, 0.002, np.linspace(0.1, 0.2, 9), [60] * 9)
    large = variants(1.1, 0.002, np.linspace(5, 20, 9), [60] * 9, noise=0.02)
    few = variants(1.0, 0.5, [1.0, 2.0, 3.0], [9] * 3)
    assert node_overhead_ms([small, large, few]) == pytest.approx(0.002, rel=0.02)


def test_networks_that_do_not_tell_have_none():
    assert node_overhead_ms([]) is None
    assert node_overhead_ms([variants(1.0, 0.01, [1.0, 2.0, 3.0], [9, 9, 9])]) is None, "too few"
    assert node_overhead_ms([variants(1.0, 0.01, [1.0] * 9, [9] * 9)]) is None, "all alike"
    noisy = variants(1.0, 0.002, np.linspace(500, 2000, 16), [60] * 16, noise=0.01)
    assert node_overhead_ms([noisy]) is None, "0.1 ms of 500"
    assert node_overhead_ms([variants(1.0, 0.0, np.linspace(1, 4, 16), [60] * 16, noise=0.01)]) is None


@given(st.floats(0, 0.05), st.floats(0, 50), st.floats(0, 0.02))
def test_it_is_within_what_a_node_can_have(noise, fixed_ms, shortest_ms):
    """Networks that take long whatever their layers take would have profilers that take time away."""
    found = node_overhead_ms(
        [variants(0.3, 0.01, np.linspace(0.1, 1, 9), [60] * 9, noise, shortest_ms - 0.01, fixed_ms)]
    )
    assert found is None or -RESOLUTION_MS - 1e-12 <= found <= shortest_ms + RESOLUTION_MS + 1e-12


def test_its_bounds_are_reached():
    fast = variants(1.0, -0.003, np.linspace(0.3, 1, 9), [60] * 9)
    assert node_overhead_ms([fast]) == pytest.approx(-RESOLUTION_MS)
    short = variants(1.0, 0.01, np.linspace(0.1, 1, 40), [60] * 40, shortest_ms=-0.006)
    assert node_overhead_ms([short]) == pytest.approx(0.004 + RESOLUTION_MS)
