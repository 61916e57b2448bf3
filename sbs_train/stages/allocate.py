"""The plan with the least estimated loss within a budget of BOPs: one price for all choices.

    minimise  sum of losses + price * BOPs        price >= 0 such that BOPs fit the budget

For a given price every layer chooses its bits, and every group its number of blocks, on its own; their products tie
them together, so they take turns until nothing changes. The price is found by bisection (Shoham and Gersho, 1988). What
the budget leaves over goes, step by step, where it saves the most loss for its BOPs.

Shapes: S searched layers; P prunable groups; K levels, coarse to fine; B blocks of a group.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 8
"""Turns that bits and blocks take at one price."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One plan: indices into the candidate bits, and how many blocks remain."""

    weights_S: Ints
    inputs_S: Ints
    blocks_P: Ints
    price: float
    """Loss a BOP is worth: a gate is open if what it saves exceeds price * BOPs."""


def allocate(space: SearchSpace, losses: Losses, budget: float) -> Allocation:
    """The plan of at most `budget` BOPs; the cheapest one where that is impossible."""
    problem = _Problem(space, losses)
    dearest = problem.cheapest_at(0.0)
    if problem.bops(dearest) <= budget:
        return dearest
    low, high = 1e-18, 1e-6
    while problem.bops(best := problem.cheapest_at(high)) > budget and high < 1e12:
        low, high = high, high * 1e3
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        found = problem.cheapest_at(middle)
        if problem.bops(found) <= budget:
            high, best = middle, found
        else:
            low = middle
    return problem.spend_the_rest(best, budget)


class _Problem:
    def __init__(self, space: SearchSpace, losses: Losses) -> None:
        self.space, self.losses = space, losses
        self.bits_w, self.bits_a = np.array(space.bits_w, np.float64), np.array(space.bits_a, np.float64)
        # loss_P[p][n] of keeping n blocks: the ones that cost least go first; too few are out of the question.
        self.loss_P: list[Floats] = []
        for group, loss_B in zip(space.prunable, losses.blocks, strict=True):
            removed = np.concatenate([[0.0], np.cumsum(np.sort(loss_B))])[::-1].copy()
            removed[: space.blocks(group) - space.prunable_blocks(group)] = np.inf
            self.loss_P.append(removed)
        self.fractions = [
            np.asarray(space.fraction(group, np.arange(len(loss))), np.float64)
            for group, loss in zip(space.prunable, self.loss_P, strict=True)
        ]

    def bops(self, plan: Allocation) -> float:
        return self.space.bops(*self._bits(plan), self._kept(plan))

    def cheapest_at(self, price: float) -> Allocation:
        """The plan with the least loss + price * BOPs."""
        blocks_P = np.array([len(loss) - 1 for loss in self.loss_P], np.int64)
        plan = Allocation(
            weights_S=np.zeros(0, np.int64), inputs_S=np.zeros(0, np.int64), blocks_P=blocks_P, price=price
        )
        for _ in range(ROUNDS):
            weights_S, inputs_S = self._best_levels(price, plan.blocks_P)
            plan = Allocation(weights_S=weights_S, inputs_S=inputs_S, blocks_P=plan.blocks_P, price=price)
            blocks_P = self._best_blocks(price, plan)
            if (blocks_P == plan.blocks_P).all():
                break
            plan = Allocation(weights_S=weights_S, inputs_S=inputs_S, blocks_P=blocks_P, price=price)
        return plan

    def _best_levels(self, price: float, blocks_P: Ints) -> tuple[Ints, Ints]:
        if not self.space.searched:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        macs_S = self.space.kept_macs(self._fractions(blocks_P))[self.space.row_S]
        bits_KK = self.bits_w[:, None] * self.bits_a[None, :]
        total_SKK = self.losses.weights_SK[:, :, None] + self.losses.inputs_SK[:, None, :]
        total_SKK = total_SKK + price * macs_S[:, None, None] * bits_KK
        flat = total_SKK.reshape(len(macs_S), -1).argmin(1)
        return flat // len(self.bits_a), flat % len(self.bits_a)

    def _best_blocks(self, price: float, plan: Allocation) -> Ints:
        """The best number of blocks of every group while the others stay as they are."""
        blocks_P = plan.blocks_P.copy()
        for p, loss in enumerate(self.loss_P):
            bops = self._bops_of_group(p, plan, blocks_P)
            # The largest of equals: pruning that saves nothing is left undone.
            total = loss + price * bops
            blocks_P[p] = len(total) - 1 - int(total[::-1].argmin())
        return blocks_P

    def _bops_of_group(self, p: int, plan: Allocation, blocks_P: Ints) -> Floats:
        """BOPs of the network for every number of blocks of group p.

        A residual stream counts twice in a layer that reads and writes it, so they are quadratic in its kept fraction.
        """
        kept_P, bits = self._fractions(blocks_P), self._bits(plan)

        def at(fraction: float) -> float:
            kept_P[p] = fraction
            return self.space.bops(*bits, kept_P)

        none, half, full = at(0.0), at(0.5), at(1.0)
        square = 2 * (none - 2 * half + full)
        fractions = self.fractions[p]
        bops: Floats = none + (full - none - square) * fractions + square * fractions**2
        return bops

    def spend_the_rest(self, plan: Allocation, budget: float) -> Allocation:
        """Open gates while the budget allows, the one that saves the most loss for its BOPs first."""
        while True:
            now, best, best_rate = self.bops(plan), None, 0.0
            for candidate, saved in self._steps_up(plan):
                extra = self.bops(candidate) - now
                if now + extra <= budget and saved / extra > best_rate:
                    best, best_rate = candidate, saved / extra
            if best is None:
                return plan
            plan = best

    def _steps_up(self, plan: Allocation) -> "list[tuple[Allocation, float]]":
        """Every plan with one tensor at more bits, or one block more, that saves loss; and the loss it saves."""
        steps = []
        for field, loss_SK in (("weights_S", self.losses.weights_SK), ("inputs_S", self.losses.inputs_SK)):
            for s, level in enumerate(getattr(plan, field)):
                # All finer levels: the next one may save nothing where the one behind it does.
                for finer in range(level + 1, loss_SK.shape[1]):
                    steps.append((_moved(plan, field, s, finer), float(loss_SK[s, level] - loss_SK[s, finer])))
        for p, loss in enumerate(self.loss_P):
            n = plan.blocks_P[p]
            if n < len(loss) - 1:
                steps.append((_moved(plan, "blocks_P", p, n + 1), float(loss[n] - loss[n + 1])))
        return [(candidate, saved) for candidate, saved in steps if saved > 0]

    def _bits(self, plan: Allocation) -> tuple[Floats, Floats]:
        if not self.space.searched:
            return np.zeros(0), np.zeros(0)
        return self.bits_w[plan.weights_S], self.bits_a[plan.inputs_S]

    def _kept(self, plan: Allocation) -> Floats:
        return self._fractions(plan.blocks_P)

    def _fractions(self, blocks_P: Ints) -> Floats:
        return np.array([f[n] for f, n in zip(self.fractions, blocks_P, strict=True)], np.float64)


def _moved(plan: Allocation, field: str, index: int, to: int) -> Allocation:
    values = {name: getattr(plan, name) for name in ("weights_S", "inputs_S", "blocks_P")}
    values[field] = values[field].copy()
    values[field][index] = to
    return Allocation(**values, price=plan.price)
