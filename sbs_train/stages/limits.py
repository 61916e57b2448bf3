"""Upper limits on costs, in milliseconds and in BOPs, and their costs as one sum.

Shapes: S searched layers; P prunable groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract.cost import Cost
from sbs_train.contract.errors import SbsError
from sbs_train.contract.target import target_reduction
from sbs_train.quant.space import ALL, SearchSpace

Floats = npt.NDArray[np.float64]

SLACK = 1e-9
"""Tolerated excess over a limit, as a part of the limit: rounding of sums in another order."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An upper limit `most` on a cost."""

    cost: Cost
    most: float


class MixedCost:
    """The costs of all limits as one sum, weighted by `mixture`; each cost is a part of dense FP32's cost."""

    def __init__(self, space: SearchSpace, limits: Sequence[Limit], mixture: tuple[float, ...]) -> None:
        self.space, self.limits, self.mixture = space, limits, mixture
        self._parts = [
            (share / limit.cost.reference, limit.cost) for limit, share in zip(limits, mixture, strict=True) if share
        ]

    def costs(self, bits_w: Any, bits_a: Any, fraction_P: Floats, rows: Any = ALL) -> Any:
        """Mixed cost of the items `rows`; `SearchSpace.costs` explains the arguments."""
        return sum(part * self.space.costs(cost, bits_w, bits_a, fraction_P, rows) for part, cost in self._parts)

    def switches(self, fraction_P: Floats) -> Any:
        """Mixed cost of changes of precision; `SearchSpace.switches` explains it."""
        return sum(part * self.space.switches(cost, fraction_P) for part, cost in self._parts)

    def total(self, bits_w_S: Floats, bits_a_S: Floats, fraction_P: Floats) -> float:
        """Mixed cost of the network; `SearchSpace.total` explains the arguments."""
        return sum(part * self.space.total(bits_w_S, bits_a_S, fraction_P, cost) for part, cost in self._parts)

    def used(self, bits_w_S: Floats, bits_a_S: Floats, fraction_P: Floats) -> list[float]:
        """Cost of the network over each limit; at most 1 where the network fits."""
        return [self.space.total(bits_w_S, bits_a_S, fraction_P, limit.cost) / limit.most for limit in self.limits]


def limit_of(space: SearchSpace, target: str) -> Limit:
    """The limit that the target sets; SbsError if no plan keeps it."""
    unit, reference = space.cost.unit, space.cost.reference
    wanted = target_reduction(target, unit, reference)
    if wanted is None:
        raise SbsError("target none: say what the search has to reach, such as 30x")
    low, high = space.reachable()
    if wanted > high * (1 + 1e-9):
        asked = f"{target} ({wanted:.4g}x)" if target.strip()[-1] != "x" else target
        raise SbsError(
            f"target {asked} is out of reach: plans of this model reach {low:.4g}x to {high:.4g}x "
            f"({reference / low:.4g} to {reference / high:.4g} {unit}); describe() of a Search with a smaller "
            f"target says what is left alone and why"
        )
    return Limit(cost=space.cost, most=reference / max(wanted, low))
