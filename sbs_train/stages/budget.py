"""How learned thresholds hit a target: a controller for lambda during the search, a projection of the gates at its end.

Part of the paper's rule: only `threshold_rule.py` needs it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sbs_train.contract.plan import ChannelGroup, Plan
from sbs_train.network.network import Network
from sbs_train.quant.gates import PRUNING_SLOPE, GateBank
from sbs_train.quant.quantizer import open_levels
from sbs_train.stages.rule import freeze

TOLERANCE = 0.05
"""A plan meets a target if its reduction lies in target .. target * (1 + TOLERANCE)."""


class Controller:
    """Adapts lambda so that the reduction follows a geometric ramp from `start` to `target`.

    Integral plus proportional action on log(lambda). The ramp ends after two thirds of the search, so that the gates
    settle in the last third.
    """

    INTEGRAL, PROPORTIONAL, FIRST, RAMP = 0.05, 2.0, 0.05, 2 / 3

    def __init__(self, *, start: float, target: float) -> None:
        self.start, self.target = start, target
        self.log_lambda = math.log(self.FIRST)
        self.value = self.FIRST
        """The weight of log(BOPs) for the next step."""

    def update(self, reduction: float, fraction: float) -> None:
        """Adapt lambda to the reduction of the last step, at `fraction` (0..1) of the search."""
        wanted = self.start * (self.target / self.start) ** min(1.0, fraction / self.RAMP)
        error = math.log(wanted / reduction)
        low, high = math.log(1e-3), math.log(10.0)
        self.log_lambda = min(max(self.log_lambda + self.INTEGRAL * error, low), high)
        self.value = math.exp(min(max(self.log_lambda + self.PROPORTIONAL * error, low), high))

    def state_dict(self) -> dict[str, Any]:
        return {"log_lambda": self.log_lambda, "value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.log_lambda, self.value = state_dict["log_lambda"], state_dict["value"]


@dataclass(kw_only=True)
class Dial:
    """One discrete choice of the search, as a position on a scale from cheap to expensive.

    `margins[i]` is the margin (metric minus threshold) of the gate between positions i and i + 1: positive where the
    search left the gate open.
    """

    name: str
    margins: list[float]
    position: int

    @property
    def margin_down(self) -> float:
        """Margin of the gate that a step down would close; infinite at the bottom."""
        return self.margins[self.position - 1] if self.position else math.inf

    @property
    def margin_up(self) -> float:
        """Negative margin of the gate that a step up would open; infinite at the top."""
        return -self.margins[self.position] if self.position < len(self.margins) else math.inf


def project(dials: list[Dial], reduction_of: Callable[[], float], target: float) -> float:
    """Move `dials`, in place, to the nearest plan whose reduction lies in the target's window; returns the reduction.

    Gates flip in the order of their margins, smallest first, as if all thresholds moved together until the budget
    fits. A flip that would leap over the window is skipped. If no flip leads into the window, the result is the last
    plan that meets the target, and for a target out of reach the cheapest plan.

    Args:
        reduction_of: callable of no arguments; the reduction of the dials as they stand.
    """
    reduction = reduction_of()
    while reduction < target:
        if not (
            _step(dials, reduction_of, -1, lambda r: r <= target * (1 + TOLERANCE)) or _step(dials, reduction_of, -1)
        ):
            return reduction
        reduction = reduction_of()
    while reduction > target * (1 + TOLERANCE) and _step(dials, reduction_of, 1, lambda r: r >= target):
        reduction = reduction_of()
    return reduction


def _step(
    dials: list[Dial],
    reduction_of: Callable[[], float],
    direction: int,
    accept: Callable[[float], bool] = lambda _: True,
) -> bool:
    """Move the dial with the smallest margin whose new reduction is accepted; False if there is none."""
    ranked = sorted((dial.margin_down if direction < 0 else dial.margin_up, index) for index, dial in enumerate(dials))
    for margin, index in ranked:
        dial = dials[index]
        if math.isinf(margin):
            break
        dial.position += direction
        if accept(reduction_of()):
            return True
        dial.position -= direction
    return False


@torch.no_grad()
def freeze_gates(network: Network, bank: GateBank, target: float | None) -> Plan:
    """Freeze the network to the plan nearest to its gates that meets `target` (a reduction, or None)."""
    choice = _Choice(bank)
    if target is not None:
        project(choice.dials, choice.reduction, target)
    choice.keep_what_is_free()
    return freeze(network, choice.bits("w"), choice.bits("a"), choice.kept())


class _Choice:
    """The gates of a bank as dials: bits of every searched tensor, kept blocks of every prunable group."""

    def __init__(self, bank: GateBank) -> None:
        self.bank, self.space = bank, bank.space
        self.dials: list[Dial] = []
        for kind, margins_LJ in (("w", bank.margins_w()), ("a", bank.margins_a())):
            for name, row_J in zip(bank.searched, margins_LJ.cpu(), strict=True):
                position = int(open_levels((row_J > 0).float()))
                self.dials.append(Dial(name=f"{kind}:{name}", margins=row_J.tolist(), position=position))
        for index, group in enumerate(bank.prunable):
            margin_B = ((bank.importance(group) - bank.alpha_p[index]) * PRUNING_SLOPE).cpu()
            # Ascending positions add blocks, the most important first; blocks that must stay have no gate.
            removable = margin_B.sort(descending=True).values[self._floor(group) :]
            position = int((removable > 0).sum())
            self.dials.append(Dial(name=f"p:{group.id}", margins=removable.tolist(), position=position))
        self.by_name = {dial.name: dial for dial in self.dials}

    def bits(self, kind: str) -> dict[str, int]:
        """Bits by layer, of weights ("w") or inputs ("a")."""
        bits = self.space.bits_w if kind == "w" else self.space.bits_a
        return {name: bits[self.by_name[f"{kind}:{name}"].position] for name in self.bank.searched}

    def kept(self) -> dict[str, list[int]]:
        """Indices of kept channels, by group."""
        result = {}
        for group in self.bank.prunable:
            blocks = self._kept_blocks(group)
            most_important = self.bank.importance(group).argsort(descending=True)[:blocks].tolist()
            result[group.id] = self.space.channels(group, most_important)
        return result

    def reduction(self) -> float:
        """Reduction (cost of dense FP32 over cost) at the dials' positions."""
        fraction_P = [self.space.fraction(group, self._kept_blocks(group)) for group in self.bank.prunable]
        return self.space.reduction(list(self.bits("w").values()), list(self.bits("a").values()), fraction_P)

    def keep_what_is_free(self) -> None:
        """Keep blocks that cost nothing: a device may compute more channels in the same time."""
        for dial in self.dials:
            while dial.name.startswith("p:") and dial.position < len(dial.margins):
                before = self.reduction()
                dial.position += 1
                if self.reduction() < before * (1 - 1e-9):
                    dial.position -= 1
                    break

    def _kept_blocks(self, group: ChannelGroup) -> int:
        return self._floor(group) + self.by_name[f"p:{group.id}"].position

    def _floor(self, group: ChannelGroup) -> int:
        return self.space.blocks(group) - self.space.prunable_blocks(group)
