"""What a budget in milliseconds can buy on a device, before any training: the range that plans reach, and its cliffs.

For every budget the plan is taken that keeps the most MACs: without data every MAC counts alike, so what is found is a
property of the device's prices alone. A cliff is a budget near which a few percent more milliseconds keep many more
MACs, since a layer's measured time rises in steps.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.allocate import allocate
from sbs_train.stages.limits import Limit
from sbs_train.stages.named import named_network
from sbs_train.stages.search import search_space

STEP = 1.03
"""Ratio of neighbouring budgets."""
FEW = 1.05
"""Most milliseconds over those before, for a cliff."""
MANY = 2.0
"""Least MACs for a millisecond at a cliff, over those of the whole range."""
SEEN = 0.02
"""Least growth of the MACs at a cliff, as a part of those of the dense network."""


def budgets(cost: Path, spec: ModelSpec, input: InputSpec) -> dict[str, Any]:
    """`ms_fp32`, `reachable_ms` and `reachable_x` (least and most), `points[]` and `cliffs[]` of a network on a device.

    Raises:
        SbsError: the device model is missing or damaged, or holds no such network.
    """
    network = named_network(TrainConfig(model=spec.name, cost=cost), spec, input)
    network.set_grids(dict.fromkeys(network.layers, False))
    space = search_space(network)
    slowest, fastest = space.reachable()
    reference = space.cost.reference
    points = _points(space, reference / fastest, reference / slowest)
    return {
        "ms_fp32": reference,
        "reachable_ms": [reference / fastest, reference / slowest],
        "reachable_x": [slowest, fastest],
        "points": points,
        "cliffs": _cliffs(points),
    }


def _points(space: SearchSpace, least: float, most: float) -> list[dict[str, Any]]:
    """The plan with the most MACs for each budget from `least` to `most` milliseconds, none twice."""
    searched = len(space.searched)
    eight = [float(INT8_BITS)] * searched
    whole = np.ones(len(space.prunable))
    dense = space.bops(eight, eight, whole)
    blocks = []
    for p, group in enumerate(space.prunable):
        less = whole.copy()
        less[p] = space.fraction(group, space.blocks(group) - 1)
        blocks.append(np.full(space.blocks(group), 1 - space.bops(eight, eight, less) / dense))
    losses = Losses(
        weights_SK=np.zeros((searched, len(space.bits_w))),
        inputs_SK=np.zeros((searched, len(space.bits_a))),
        blocks=blocks,
    )
    count = max(2, 1 + int(np.ceil(np.log(most / least) / np.log(STEP))))
    points: list[dict[str, Any]] = []
    for budget in np.geomspace(least, most, count):
        found = allocate(space, losses, [Limit(cost=space.cost, most=float(budget))])
        bits_w, bits_a = np.array(space.bits_w, np.float64), np.array(space.bits_a, np.float64)
        kept = [float(space.fraction(g, n)) for g, n in zip(space.prunable, found.blocks_P, strict=True)]
        point = {
            "ms": space.total(bits_w[found.weights_S], bits_a[found.inputs_S], kept, space.cost),
            "macs": space.bops(eight, eight, kept) / dense,
            "kept": {g.id: round(f * g.size) for g, f in zip(space.prunable, kept, strict=True)},
        }
        # A larger budget can also buy what a smaller one had.
        if not points or point["macs"] > points[-1]["macs"]:
            points.append(point)
    return points


def _cliffs(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring points with little between their milliseconds and much between their MACs."""
    cliffs: list[dict[str, Any]] = []
    if len(points) < 2:
        return cliffs
    mean = (points[-1]["macs"] - points[0]["macs"]) / (points[-1]["ms"] - points[0]["ms"])
    for one, more in pairwise(points):
        ms, macs = more["ms"] - one["ms"], more["macs"] - one["macs"]
        if more["ms"] <= FEW * one["ms"] and macs >= max(SEEN, MANY * mean * ms):
            changed = {g: [n, more["kept"][g]] for g, n in one["kept"].items() if more["kept"][g] != n}
            cliffs.append({"ms": [one["ms"], more["ms"]], "macs": [one["macs"], more["macs"]], "channels": changed})
    return cliffs
