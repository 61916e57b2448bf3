"""What a profiler adds to every node that an engine runs, in a network of small layers more than the layers take.

A network as a whole takes about `factor * (profiled - overhead * nodes)`: the overhead is the profiler's own (ONNX
Runtime on one CPU: 2.4 us a node), and negative where it counts whole microseconds and drops the rest (OpenVINO). Slim
variants tell the two apart: their layers take less and their nodes stay; where readers differ there are more nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 4
"""Variants that a line needs: with fewer their noise decides."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """One variant."""

    whole_ms: float
    """From end to end, with the profiler off."""
    profiled_ms: float
    """The sum over its nodes."""
    nodes: int


def node_overhead_ms(variants: Sequence[Totals]) -> float:
    """Milliseconds a node, by least squares of relative errors; 0 where the variants do not tell."""
    if len(variants) < FEWEST:
        return 0.0
    terms = np.array([(one.profiled_ms, -one.nodes) for one in variants])
    whole = np.array([one.whole_ms for one in variants])
    (factor, share), _, rank, _ = np.linalg.lstsq(terms / whole[:, None], np.ones(len(whole)), rcond=1e-4)
    if rank < 2 or factor <= 0:
        return 0.0
    # No more than what the variant with the shortest nodes has.
    return float(min(share / factor, *(one.profiled_ms / one.nodes for one in variants)))
