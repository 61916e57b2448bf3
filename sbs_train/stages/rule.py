"""The interface of rules, which decide a network's gates while it trains.

A rule compares a metric with a threshold, gate by gate. There are two:

    LossRule       metric: the loss a gate saves (quant/sensitivity.py); threshold: the price of its BOPs, one price
                   for the whole network, such that the budget is met at every moment. The default.
    ThresholdRule  metric: the quantization error, or the norm of the filters; threshold: learned by gradient descent
                   on cross-entropy + lambda * log(BOPs), lambda fixed or adapted to the target (the paper).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.optim import Optimizer

from sbs_train.contract.plan import Plan
from sbs_train.network.network import Network
from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.checkpoint import Stateful
from sbs_train.stages.plans import apply_plan, plan_of_network
from sbs_train.stages.rates import Shape


@dataclass(frozen=True, kw_only=True)
class GateView:
    """State of all gates, for logs."""

    bits_w: dict[str, int]
    bits_a: dict[str, int]
    kept: dict[str, int]
    """Number of kept channels, by group."""
    margins: dict[str, list[float]]
    """Metric minus threshold by gate, coarse to fine: "w:LAYER", "a:LAYER", and "p:GROUP" for its least block."""


class GateRule(Protocol):
    """A rule that decides gates. The search calls `before`, `before_part`, `after` at every step."""

    losses: Losses | None
    """Estimated losses of the last decision; None where a rule estimates none."""
    optimizers: list[tuple[Optimizer, Shape]]
    state: Mapping[str, Stateful]

    def before(self, step: int) -> Tensor | None:
        """Set the gates of this step; returns a term to add to the loss, or None."""

    def before_part(self, start: int) -> None:
        """Prepare the forward pass over a micro-batch: of this rank's samples those from `start` on."""

    def after(self, step: int, samples: int) -> dict[str, Tensor]:
        """Learn from the backward pass over a batch, with `samples` samples on this rank.

        Returns the scalars `lambda`, `reduction` and `flips`, equal on every rank.
        """

    def plan(self) -> Plan:
        """Freeze the network to a plan that meets the target; the next `before` thaws it."""

    def view(self) -> GateView: ...


def freeze(
    network: Network,
    bits_w: dict[str, int],
    bits_a: dict[str, int],
    kept: dict[str, list[int]] | None = None,
) -> Plan:
    """Freeze the named layers' bits and the named groups' channels, and return the plan; all others stay."""
    for name, layer in network.layers.items():
        if layer.grid_w is not None:
            layer.set_bits(bits_w.get(name, layer.bits_w), bits_a.get(name, layer.bits_a))
    plan = plan_of_network(network, kept)
    apply_plan(network, plan)
    return plan
