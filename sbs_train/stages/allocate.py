"""The plan with the least estimated loss within a budget of BOPs or milliseconds: one price for all choices.

    minimise  sum of losses + price * cost        price >= 0 such that the cost fits the budget

    For a given price every layer chooses its bits, and every group its number of blocks, on its own; their products tie
them together, so they take turns until nothing changes. Float is a choice of weights and input together, and a change
of precision between two layers costs something, so all layers choose it at once (`SearchSpace.precisions`). The price
is found by bisection (Shoham and Gersho, 1988). What the budget leaves over goes, step by step, where it saves the most
loss for its cost; what costs nothing is taken.
With two limits (milliseconds and BOPs) the price is one of a mixture of both, and the mixture with the least loss is
taken.

Shapes: S searched layers; P prunable groups; K levels, coarse to fine; B blocks of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.limits import SLACK, Limit, MixedCost

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 8
"""Most turns of bits and blocks at one price."""

MIXTURES = (0.0, 1.0, 0.5, 0.25, 0.75, 0.125, 0.875)
"""Tried shares of the second of two limits in the mixed cost; each limit alone (0 and 1) comes first."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One plan: indices into the candidate bits, and numbers of kept blocks."""

    weights_S: Ints
    inputs_S: Ints
    blocks_P: Ints
    price: float
    """Loss per cost of dense FP32: a gate is open if the loss it saves exceeds price * cost / (cost of dense FP32)."""
    mixture: tuple[float, ...] = (1.0,)
    """Share of every limit's cost in the mixed cost."""


def allocate(space: SearchSpace, losses: Losses, limits: Sequence[Limit]) -> Allocation:
    """The plan with the least loss within all limits; the cheapest plan where no plan is within them."""
    if len(limits) == 1:
        problem = _Problem(space, losses, MixedCost(space, limits, (1.0,)))
        return problem.within(_allocated(problem))
    found: list[tuple[float, Allocation]] = []
    for share in MIXTURES:
        problem = _Problem(space, losses, MixedCost(space, limits, (1 - share, share)))
        plan = _allocated(problem)
        fits = problem.fits(plan)
        if share in (0.0, 1.0) and fits:
            return plan  # the other limit does not bind
        found.append((problem.loss(plan) if fits else np.inf, plan))
    return problem.within(min(found, key=lambda pair: (pair[0], problem.excess(pair[1])))[1])


def _allocated(problem: "_Problem") -> Allocation:
    dearest = problem.cheapest_at(0.0)
    if problem.fits(dearest):
        return dearest
    low, high = 1e-6 * problem.unit, 1e6 * problem.unit
    while not problem.fits(best := problem.cheapest_at(high)) and high < 1e24 * problem.unit:
        low, high = high, high * 1e3
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        found = problem.cheapest_at(middle)
        if problem.fits(found):
            high, best = middle, found
        else:
            low = middle
    # One price may leap over a plan of one precision that fits.
    plans = [plan for plan in (best, *problem.of_one_precision()) if problem.fits(plan)]
    return min(map(problem.spend_the_rest, plans), key=problem.loss) if plans else best


class _Problem:
    def __init__(self, space: SearchSpace, losses: Losses, mixed: MixedCost) -> None:
        self.space, self.mixed = space, mixed
        self.losses = replace(
            losses,
            weights_SK=_at_finest(losses.weights_SK, space),
            inputs_SK=_at_finest(losses.inputs_SK, space),
        )
        self.bits_w, self.bits_a = np.array(space.bits_w, np.float64), np.array(space.bits_a, np.float64)
        # loss_P[p][n] of keeping n blocks: blocks with the least loss go first; infinite below the fewest blocks.
        self.loss_P: list[Floats] = []
        for group, loss_B in zip(space.prunable, losses.blocks, strict=True):
            removed = np.concatenate([[0.0], np.cumsum(np.sort(loss_B))])[::-1].copy()
            removed[: space.blocks(group) - space.prunable_blocks(group)] = np.inf
            self.loss_P.append(removed)
        self.fractions = [
            np.asarray(space.fraction(group, np.arange(len(loss))), np.float64)
            for group, loss in zip(space.prunable, self.loss_P, strict=True)
        ]

        found = [*losses.weights_SK.flat, *losses.inputs_SK.flat, *np.concatenate([np.zeros(1), *losses.blocks])]
        self.unit = float(max(found)) or 1.0  # a checkpoint keeps prices, and loads no numbers of NumPy
        """The largest loss of a choice: prices scale with the loss, which may have any factor."""
        unpruned = len(self.loss_P)
        self.rows_P = [np.flatnonzero((space.group_in == p) | (space.group_out == p)) for p in range(unpruned)]

    def fits(self, plan: Allocation) -> bool:
        """Whether a plan is within all limits."""
        return self.excess(plan) <= 1 + SLACK

    def within(self, plan: Allocation) -> Allocation:
        """The plan if it is within all limits, else the one that exceeds them least, or a cheaper one that does not."""
        if self.fits(plan):
            return plan
        return self.spend_the_rest(min(plan, self.cheapest(plan), key=self.excess))

    def excess(self, plan: Allocation) -> float:
        """The largest part of a limit that a plan uses."""
        return max(self._used(plan))

    def loss(self, plan: Allocation) -> float:
        """The estimated loss of a plan."""
        losses, rows = self.losses, np.arange(len(plan.weights_S))
        bits = losses.weights_SK[rows, plan.weights_S].sum() + losses.inputs_SK[rows, plan.inputs_S].sum()
        return float(bits + sum(loss[n] for loss, n in zip(self.loss_P, plan.blocks_P, strict=True)))

    def cheapest_at(self, price: float) -> Allocation:
        """The plan with the least loss + price * cost."""
        plan = self._dense(len(self.bits_w) - 1, len(self.bits_a) - 1, price)
        for _ in range(ROUNDS):
            before = plan
            weights_S, inputs_S = self._best_levels(price, plan)
            plan = replace(plan, weights_S=weights_S, inputs_S=inputs_S)
            plan = replace(plan, blocks_P=self._best_blocks(price, plan))
            if (plan.blocks_P == before.blocks_P).all():
                break  # the bits follow from the blocks
        return plan

    def cheapest(self, like: Allocation) -> Allocation:
        """The plan of the largest reduction that the space reaches, with the price and mixture of `like`.

        On a device fewer channels may cost more, and bits and blocks that take turns from the dense network can end
        at a plan that is dearer.
        """
        weights, inputs, kept = self.space.cheapest()
        return replace(
            like,
            weights_S=np.searchsorted(self.bits_w, weights),
            inputs_S=np.searchsorted(self.bits_a, inputs),
            blocks_P=np.array(
                [int(np.abs(f - k).argmin()) for f, k in zip(self.fractions, kept, strict=True)], np.int64
            ),
        )

    def of_one_precision(self) -> list[Allocation]:
        """The whole network in its finest bits, and in float; nothing where float is no candidate."""
        levels = [(len(self.bits_w) - level, len(self.bits_a) - level) for level in (2, 1)]
        return [self._dense(*pair, 0.0) for pair in levels] if self.space.floats else []

    def _dense(self, level_w: int, level_a: int, price: float) -> Allocation:
        searched = len(self.space.searched)
        return Allocation(
            weights_S=np.full(searched, level_w, np.int64),
            inputs_S=np.full(searched, level_a, np.int64),
            blocks_P=np.array([len(loss) - 1 for loss in self.loss_P], np.int64),
            price=price,
            mixture=self.mixed.mixture,
        )

    def _best_levels(self, price: float, plan: Allocation) -> tuple[Ints, Ints]:
        if not self.space.searched:
            return plan.weights_S, plan.inputs_S
        fraction_P, rows = self._fractions(plan.blocks_P), self.space.row_S
        searched = np.ones(len(rows))
        cost_SKK = np.stack(
            [
                np.stack([self.mixed.costs(w * searched, a * searched, fraction_P, rows) for a in self.bits_a], -1)
                for w in self.bits_w
            ],
            -2,
        )
        total_SKK = self.losses.weights_SK[:, :, None] + self.losses.inputs_SK[:, None, :] + price * cost_SKK
        if not self.space.floats:
            flat = _finest_least(total_SKK.reshape(len(rows), -1))
            return flat // len(self.bits_a), flat % len(self.bits_a)
        quantized_SKK, columns = total_SKK[:, :-1, :-1], len(self.bits_a) - 1
        flat = _finest_least(quantized_SKK.reshape(len(rows), -1))
        least_S = quantized_SKK.reshape(len(rows), -1).min(1)
        in_float = self.space.precisions(least_S, total_SKK[:, -1, -1], price * self.mixed.switches(fraction_P))
        weights_S = np.where(in_float, len(self.bits_w) - 1, flat // columns)
        return weights_S, np.where(in_float, columns, flat % columns)

    def _best_blocks(self, price: float, plan: Allocation) -> Ints:
        """The best number of blocks `(P)` of every group while all other groups keep the numbers in `plan`."""
        blocks_P, bits_L = plan.blocks_P.copy(), self.space.all_bits(*self._bits(plan))
        changed_L = self.space.changed(*bits_L)
        for p, (loss, rows) in enumerate(zip(self.loss_P, self.rows_P, strict=True)):
            fraction_BP = np.repeat(self._fractions(blocks_P)[None], len(loss), 0)
            fraction_BP[:, p] = self.fractions[p]
            cost_B = self.mixed.costs(bits_L[0][rows], bits_L[1][rows], fraction_BP, rows).sum(-1)
            cost_B = cost_B + self.mixed.switches(fraction_BP)[:, changed_L].sum(-1)
            # The largest of equal totals: channels are not pruned without a gain.
            total = loss + price * cost_B
            blocks_P[p] = len(total) - 1 - int(total[::-1].argmin())
        return blocks_P

    def spend_the_rest(self, plan: Allocation) -> Allocation:
        """Open gates while the limits allow, the one that saves the most loss for its cost first."""
        while True:
            now, best, best_rate = self._total(plan), None, 0.0
            for candidate, saved in self._steps_up(plan):
                if not self.fits(candidate):
                    continue
                extra = self._total(candidate) - now
                rate = saved / extra if extra > SLACK else np.inf
                if rate > best_rate:
                    best, best_rate = candidate, rate
            if best is None:
                return plan
            plan = best

    def _steps_up(self, plan: Allocation) -> "list[tuple[Allocation, float]]":
        """Every plan with one tensor at more bits, one layer in float or one block more, and less loss; with the loss
        it saves."""
        steps, floats = [], int(self.space.floats)
        last = len(self.bits_w) - 1
        for field, loss_SK in (("weights_S", self.losses.weights_SK), ("inputs_S", self.losses.inputs_SK)):
            for s, level in enumerate(getattr(plan, field)):
                # All finer levels: the next level may save nothing where a finer level does.
                for finer in range(level + 1, loss_SK.shape[1] - floats):
                    steps.append((_moved(plan, field, s, finer), float(loss_SK[s, level] - loss_SK[s, finer])))
        for s in np.flatnonzero(plan.weights_S < last).tolist() if floats else ():
            saved = self.losses.weights_SK[s, plan.weights_S[s]] + self.losses.inputs_SK[s, plan.inputs_S[s]]
            in_float = _moved(_moved(plan, "weights_S", s, last), "inputs_S", s, len(self.bits_a) - 1)
            steps.append((in_float, float(saved)))
        for p, loss in enumerate(self.loss_P):
            n = plan.blocks_P[p]
            if n < len(loss) - 1:
                steps.append((_moved(plan, "blocks_P", p, n + 1), float(loss[n] - loss[n + 1])))
        return [(candidate, saved) for candidate, saved in steps if saved > 0]

    def _bits(self, plan: Allocation) -> tuple[Floats, Floats]:
        return self.bits_w[plan.weights_S], self.bits_a[plan.inputs_S]

    def _used(self, plan: Allocation) -> list[float]:
        return self.mixed.used(*self._bits(plan), self._fractions(plan.blocks_P))

    def _total(self, plan: Allocation) -> float:
        return self.mixed.total(*self._bits(plan), self._fractions(plan.blocks_P))

    def _fractions(self, blocks_P: Ints) -> Floats:
        return np.array([f[n] for f, n in zip(self.fractions, blocks_P, strict=True)], np.float64)


def _at_finest(loss_SK: Floats, space: SearchSpace) -> Floats:
    """The losses, infinite where a layer has only its finest bits and float to choose from."""
    coarse = np.arange(loss_SK.shape[1]) < loss_SK.shape[1] - 2
    return np.where(space.finest_S[:, None] & coarse, np.inf, loss_SK)


def _finest_least(total_SK: Floats) -> Ints:
    """Column of the least value of each row; of equals the finest level."""
    found: Ints = total_SK.shape[1] - 1 - total_SK[:, ::-1].argmin(1)
    return found


def _moved(plan: Allocation, field: str, index: int, to: int) -> Allocation:
    values = getattr(plan, field).copy()
    values[index] = to
    return replace(plan, **{field: values})
