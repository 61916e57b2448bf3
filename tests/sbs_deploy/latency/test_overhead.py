"""What a profiler adds to a node, from networks with and without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.latency.overhead import Totals, node_overhead_ms


def variants(factor, overhead_ms, sizes, nodes, noise=0.0):
    """Networks whose layers together take `sizes` milliseconds."""
    rng = np.random.default_rng(0)
    return [
        Totals(whole_ms=factor * ms * (1 + noise * rng.standard_normal()), profiled_ms=ms + overhead_ms * n, nodes=n)
        for ms, n in zip(sizes, nodes, strict=True)
    ]


@given(
    st.floats(0.5, 1.5), st.floats(-0.001, 0.01), st.lists(st.floats(0.05, 20), min_size=4, max_size=40, unique=True)
)
def test_it_is_found_from_layers_that_take_less_in_as_many_nodes(factor, overhead_ms, sizes):
    sizes = [*sizes, 0.05, 20.0]
    found = node_overhead_ms(variants(factor, overhead_ms, sizes, [50] * len(sizes)))
    assert found == pytest.approx(overhead_ms, abs=1e-9)


def test_it_is_found_from_networks_with_more_nodes_and_noise():
    sizes, nodes = np.tile(np.linspace(0.15, 0.21, 16), 2), [59] * 16 + [125] * 16
    found = node_overhead_ms(variants(0.9, 0.0025, sizes + np.array(nodes) * 4e-4, nodes, noise=0.02))
    assert found == pytest.approx(0.0025, rel=0.15)


def test_networks_that_do_not_tell_have_none():
    assert node_overhead_ms([]) == 0.0
    assert node_overhead_ms(variants(1.0, 0.01, [1.0, 2.0, 3.0], [9, 9, 9])) == 0.0, "too few"
    assert node_overhead_ms(variants(1.0, 0.01, [1.0] * 9, [9] * 9)) == 0.0, "all alike"
    shrinking = [Totals(whole_ms=ms, profiled_ms=10 - ms, nodes=9) for ms in (1.0, 2.0, 3.0, 4.0)]
    assert node_overhead_ms(shrinking) == 0.0, "those that take longer have less in their layers"


def test_it_is_no_more_than_the_shortest_nodes_have():
    whole = (2.0, 1.0, 1.0, 2.0)
    odd = [Totals(whole_ms=ms, profiled_ms=10 + ms, nodes=n) for ms, n in zip(whole, (9, 9, 9, 9), strict=True)]
    assert node_overhead_ms(odd) == pytest.approx(10 / 9)
    many = [*odd, Totals(whole_ms=1.5, profiled_ms=9.0, nodes=30)]
    assert node_overhead_ms(many) <= 0.3
