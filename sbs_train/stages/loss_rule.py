"""Rule that opens a gate if the loss it saves exceeds its cost, at one price of cost for the whole network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from sbs_train.contract.plan import FLOAT_BITS, Plan
from sbs_train.network.network import Network
from sbs_train.quant.sensitivity import Losses, Sensitivity
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.allocate import Allocation, allocate
from sbs_train.stages.checkpoint import Stateful
from sbs_train.stages.limits import Limit, MixedCost
from sbs_train.stages.ranks import ALONE, Ranks
from sbs_train.stages.rates import Shape
from sbs_train.stages.rule import GateView, freeze

WARM_UP = 30
"""Steps at the finest bits before the first decision: the moments need them."""
DECIDE_EVERY = 10


class LossRule:
    """Decides gates by the loss they save; a `GateRule`."""

    def __init__(
        self, network: Network, space: SearchSpace, limits: Sequence[Limit], steps: int, ranks: Ranks = ALONE
    ) -> None:
        """The first of `limits` is the target."""
        self.network, self.space, self.limits, self.steps, self.ranks = network, space, limits, steps, ranks
        self.sensitivity = Sensitivity(space, rank=ranks.rank, world=ranks.world, add=ranks.sum)
        self.optimizers: list[tuple[Optimizer, Shape]] = []
        self.state: Mapping[str, Stateful] = {"sensitivity": self.sensitivity, "rule": self}
        self.warm_up = max(1, min(WARM_UP, steps // 4))
        """Steps before the first decision."""
        self.settled = int(steps * space.config.settle[0])
        """Steps after which gates rest."""
        self._every = max(1, min(DECIDE_EVERY, steps // 20))
        finest_w, finest_a = (max(0, len(bits) - 1) for bits in (space.bits_w, space.bits_a))
        searched = len(space.searched)
        self.losses: Losses | None = None
        """Losses of the last decision; None before the first decision."""
        self._flips = 0
        self._take(
            Allocation(
                weights_S=np.full(searched, finest_w),
                inputs_S=np.full(searched, finest_a),
                blocks_P=np.array([space.blocks(group) for group in space.prunable], np.int64),
                price=0.0,
                mixture=(1.0,) if len(limits) == 1 else (1.0, 0.0),
            ),
            [list(range(space.blocks(group))) for group in space.prunable],
        )

    def before(self, step: int) -> None:
        since = step - self.warm_up
        due = since >= 0 and since % self._every == 0 and (step < self.settled or self.losses is None)
        if due and self.sensitivity.count:
            self._decide()
        self.put_in_place()
        self.sensitivity.zero_grad()

    def before_part(self, start: int) -> None:
        self.sensitivity.start_pass(start)

    def after(self, step: int, samples: int) -> dict[str, Tensor]:
        self.sensitivity.observe(samples)
        flips, self._flips = self._flips, 0
        scalars = {"lambda": self.current.price / self.reduction, "reduction": self.reduction, "flips": flips}
        return {name: torch.tensor(float(value)) for name, value in scalars.items()}

    @property
    def reduction(self) -> float:
        """Reduction of the last decision's plan."""
        return self.space.reduction(*self._bits(), self._kept_fractions())

    def plan(self) -> Plan:
        if self.losses is None:
            self._decide()
        self._in_place = False
        self.sensitivity.detach()
        bits_w, bits_a = (dict(zip(self.space.searched, bits, strict=True)) for bits in self._bits())
        return freeze(self.network, bits_w, bits_a, self.space.kept(self.kept_blocks))

    def view(self) -> GateView:
        losses, current, space = self.losses or self.sensitivity.losses(), self.current, self.space
        fraction_P, mixed = np.array(self._kept_fractions()), MixedCost(space, self.limits, current.mixture)
        bits_w, bits_a = self._bits()
        bits_S = np.array(bits_w, np.float64), np.array(bits_a, np.float64)
        bits_L = space.all_bits(*bits_S)
        margins: dict[str, list[float]] = {}
        for kind, loss_SK, bits in (("w", losses.weights_SK, space.bits_w), ("a", losses.inputs_SK, space.bits_a)):
            if not space.searched:
                break
            count = len(bits) - int(space.floats)  # bits up to the finest; float is a choice of both at once
            levels = np.array(bits[:count], np.float64)[:, None].repeat(len(space.searched), 1)
            pair = (levels, bits_L[1][space.row_S]) if kind == "w" else (bits_L[0][space.row_S], levels)
            cost_KS = mixed.costs(*pair, fraction_P, space.row_S)
            margin_SJ = -np.diff(loss_SK[:, :count], axis=1) - current.price * np.diff(cost_KS, axis=0).T
            margins |= {f"{kind}:{name}": row.tolist() for name, row in zip(space.searched, margin_SJ, strict=True)}
        now = mixed.total(*bits_S, fraction_P)
        for p, (group, loss_B) in enumerate(zip(space.prunable, losses.blocks, strict=True)):
            fewer = fraction_P.copy()
            fewer[p] -= space.block_size(group) / group.size
            saved = current.price * (now - mixed.total(*bits_S, fewer))
            margins[f"p:{group.id}"] = [float(loss_B[self.kept_blocks[p]].min() - saved)]
        return GateView(
            bits_w=dict(zip(space.searched, bits_w, strict=True)),
            bits_a=dict(zip(space.searched, bits_a, strict=True)),
            kept={name: len(channels) for name, channels in space.kept(self.kept_blocks).items()},
            margins=margins,
        )

    def state_dict(self) -> dict[str, Any]:
        values = (self.current.weights_S, self.current.inputs_S, self.current.blocks_P)
        levels = [value.tolist() for value in values]
        losses = self.losses and [self.losses.weights_SK, self.losses.inputs_SK, *self.losses.blocks]
        return {
            "levels": levels,
            "price": self.current.price,
            "mixture": list(self.current.mixture),
            "kept": self.kept_blocks,
            "losses": losses and [loss.tolist() for loss in losses],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        weights_S, inputs_S, blocks_P = (np.array(value, np.int64) for value in state_dict["levels"])
        for levels, own, count in (
            (weights_S, self.current.weights_S, len(self.space.bits_w)),
            (inputs_S, self.current.inputs_S, len(self.space.bits_a)),
        ):
            if levels.shape != own.shape or levels.min(initial=0) < 0 or levels.max(initial=0) > max(0, count - 1):
                raise ValueError("levels are of another search")
        if blocks_P.shape != self.current.blocks_P.shape or len(state_dict["kept"]) != len(self.kept_blocks):
            raise ValueError("kept is of another search")
        for group, blocks in zip(self.space.prunable, state_dict["kept"], strict=True):
            if not blocks or not set(blocks) <= set(range(self.space.blocks(group))):
                raise ValueError(f"kept of {group.id} names blocks that it does not have")
        price, mixture = state_dict["price"], tuple(state_dict["mixture"])
        found = Allocation(weights_S=weights_S, inputs_S=inputs_S, blocks_P=blocks_P, price=price, mixture=mixture)
        self._take(found, state_dict["kept"])
        if state_dict["losses"] is not None:
            weights_SK, inputs_SK, *blocks = (np.array(loss, np.float64) for loss in state_dict["losses"])
            if {len(weights_SK), len(inputs_SK)} != {len(self.space.searched)} or len(blocks) != len(self.kept_blocks):
                raise ValueError("losses are of another search")
            self.losses = Losses(weights_SK=weights_SK, inputs_SK=inputs_SK, blocks=blocks)

    def _decide(self) -> None:
        # The moments are equal on all ranks, but processors may round results differently.
        losses, found = self.ranks.on_first(self._allocate)
        self.losses = losses
        kept = [
            sorted(np.argsort(-loss_B, kind="stable")[:count].tolist())
            for loss_B, count in zip(losses.blocks, found.blocks_P, strict=True)
        ]
        before = self.current
        flips = sum(
            int(np.abs(new - old).sum())
            for new, old in ((found.weights_S, before.weights_S), (found.inputs_S, before.inputs_S))
        )
        flips += sum(len(set(new) ^ set(old)) for new, old in zip(kept, self.kept_blocks, strict=True))
        self._take(found, kept)
        self._flips = flips

    def _allocate(self) -> tuple[Losses, Allocation]:
        losses = self.sensitivity.losses()
        return losses, allocate(self.space, losses, self.limits)

    def _take(self, allocation: Allocation, kept: list[list[int]]) -> None:
        self.current, self.kept_blocks = allocation, kept
        self._in_place, self._flips = False, 0

    def to(self, device: torch.device) -> None:
        """Follow the network to a device."""
        self.sensitivity.to(device)
        self._in_place = False

    def put_in_place(self) -> None:
        """Give the network the gates of the last decision, and the probes."""
        if self._in_place:
            return
        for name, bits_w, bits_a in zip(self.space.searched, *self._bits(), strict=True):
            # A layer that will be in float trains at its finest bits until then: probes need a quantizer.
            in_float = self.space.floats and bits_w == FLOAT_BITS
            pair = (self.space.bits_w[-2], self.space.bits_a[-2]) if in_float else (bits_w, bits_a)
            self.space.layers[name].set_bits(*pair)
        self.sensitivity.set_masks(self.kept_blocks)
        self.sensitivity.attach()
        self._in_place = True

    def _bits(self) -> tuple[list[int], list[int]]:
        weights = [self.space.bits_w[k] for k in self.current.weights_S]
        return weights, [self.space.bits_a[k] for k in self.current.inputs_S]

    def _kept_fractions(self) -> list[float]:
        kept = self.space.kept(self.kept_blocks)
        return [len(kept[group.id]) / group.size for group in self.space.prunable]
