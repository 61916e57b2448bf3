"""What a profiler adds to every node that an engine runs; in a network of small layers more than the layers take.

A network as a whole takes about `factor * (profiled - overhead * nodes)`, with a factor of its own. The overhead is the
profiler's (ONNX Runtime on one CPU: 2 to 3 us a node), and below 0 where it drops what is less than a microsecond
(OpenVINO). Slim variants tell the two apart: their layers take less and their nodes are as many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST = 4
"""Variants of a network that say something: with fewer their noise decides."""
RESOLUTION_MS = 1e-3
"""Of profilers: what they may drop of a node, and what a time may hold beyond its overhead and nothing."""
CERTAIN = 2.0
"""Standard errors that it must differ from 0 by."""
_STEPS = 2001
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Totals:
    """One variant of a network."""

    whole_ms: float
    """From end to end, with the profiler off."""
    profiled_ms: float
    """The sum over its nodes."""
    nodes: int
    shortest_ms: float
    """Of a node, in the step whose nodes are shortest."""


def node_overhead_ms(networks: Sequence[Sequence[Totals]]) -> float | None:
    """Milliseconds a node, by least squares of the relative errors of whole variants; None where they do not tell.

    It is sought where it can be: no node takes less than nothing.
    """
    telling = [variants for variants in networks if len(variants) >= FEWEST]
    if not telling:
        return None
    high = RESOLUTION_MS + min(one.shortest_ms for variants in telling for one in variants)
    around, half = (high - RESOLUTION_MS) / 2, (high + RESOLUTION_MS) / 2
    for _ in range(3):  # closer and closer
        tried = np.clip(np.linspace(around - half, around + half, _STEPS), -RESOLUTION_MS, high)
        around, half = float(tried[np.argmin(_errors(telling, tried))]), 4 * half / _STEPS
    without, best = _errors(telling, np.array([0.0, around]))
    free = sum(map(len, telling)) - len(telling) - 1
    return around if without - best > CERTAIN**2 * best / free + _ROUNDING else None


def _errors(networks: Sequence[Sequence[Totals]], overheads_C: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared relative errors of all variants, each network with the factor that suits it, by overhead."""
    total = np.zeros(len(overheads_C))
    for variants in networks:
        whole, profiled, nodes = (
            np.array([getattr(one, name) for one in variants]) for name in ("whole_ms", "profiled_ms", "nodes")
        )
        parts_CV = (profiled - overheads_C[:, None] * nodes) / whole
        # sum (1 - factor * part)^2 at factor = sum part / sum part^2, which must not be negative
        total += len(variants) - np.maximum(parts_CV.sum(1), 0) ** 2 / np.maximum((parts_CV**2).sum(1), 1e-30)
    return total
