"""Rule that compares quantization errors with learned thresholds (the paper, sections 3.2 to 3.4)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sbs_train.contract.config import SearchConfig
from sbs_train.contract.plan import Plan
from sbs_train.network.network import Network
from sbs_train.quant.gates import GateBank
from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.budget import Controller, freeze_gates
from sbs_train.stages.checkpoint import Stateful
from sbs_train.stages.context import Context
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.ranks import ALONE, Ranks
from sbs_train.stages.rates import Shape
from sbs_train.stages.rule import GateView

METRIC_BATCHES = 30
RAMP_START = 16.0
"""The reduction at which the controller's ramp starts: every layer at 8 bits."""


class ThresholdRule:
    """Decides gates by their quantization error and learned thresholds; a `GateRule`."""

    def __init__(
        self, network: Network, space: SearchSpace, target: float | None, steps: int, ranks: Ranks = ALONE
    ) -> None:
        config, self.ranks = space.config, ranks
        self.network, self.space, self.target, self.steps, self.config = network, space, target, steps, config
        self.bank = GateBank(space)
        rates = [
            {"params": [self.bank.alpha_w, self.bank.alpha_a], "lr": config.lr_threshold},
            {"params": [self.bank.alpha_p], "lr": config.lr_pruning},
        ]
        self.thresholds = torch.optim.Adam(rates, betas=(0.9, 0.99))
        # Without a target lambda is fixed, and the controller is unused.
        self.controller = Controller(start=min(RAMP_START, target or RAMP_START), target=target or RAMP_START)
        self.optimizers: list[tuple[Optimizer, Shape]] = [(self.thresholds, settling(config))]
        self.losses: Losses | None = None
        self.state: Mapping[str, Stateful] = {"gates": self.bank, "controller": self.controller, "rule": self}
        self._last: Tensor | None = None
        """Gates of the last step, to count flips."""

    @torch.no_grad()
    def start(self, ctx: Context) -> None:
        """Measure every quantization error at the start and make it the unit of its gate.

        A tensor with many zeros, such as the output of a ReLU, has a small error at any bitwidth. In common units its
        gates would close before those of the weights, although activations need the bits more.
        """
        self.gather(True)
        self.network.model.eval()
        seed = epoch_seed(ctx.config.seed, "metrics", 0)
        for example in ctx.feed.examples(seed, METRIC_BATCHES):
            example.run(self.network.model)
        self._share_metrics()
        if self.config.units == "start":
            for name in self.bank.searched:
                self.space.layers[name].normalise_metrics()

    def before(self, step: int) -> Tensor:
        take_turns(self.bank, self.config, step)
        self.gather(True)
        self.thresholds.zero_grad()
        self._gates = self.bank()
        self._weight = self.controller.value if self.config.lambda_ is None else self.config.lambda_
        penalty: Tensor = self._weight * torch.log(self._gates.cost)
        return penalty

    def before_part(self, start: int) -> None:
        self.gather(start == 0)  # one measurement a step, however many parts it has

    def after(self, step: int, samples: int) -> dict[str, Tensor]:
        self._share_metrics()
        self.ranks.average_([alpha.grad for alpha in self.bank.parameters() if alpha.grad is not None])
        self.thresholds.step()
        self.bank.clamp()
        reduction = self.space.cost.reference / self._gates.cost.detach()
        self.controller.update(float(reduction), step / self.steps)
        now = torch.cat([self._gates.bits_w_L, self._gates.bits_a_L, self._gates.fraction_P]).detach()
        last, self._last = self._last, now
        flips = torch.zeros(()) if last is None else (now != last).sum().float()
        return {"lambda": torch.tensor(self._weight), "reduction": reduction, "flips": flips}

    def plan(self) -> Plan:
        self.gather(False)
        return freeze_gates(self.network, self.bank, self.target)

    @torch.no_grad()
    def view(self) -> GateView:
        self.gather(False)
        gates, bank = self.bank(), self.bank
        row = self.space.row_S.tolist()
        margins = {}
        for kind, margins_SJ in (("w", bank.margins_w()), ("a", bank.margins_a())):
            for name, margin_J in zip(bank.searched, margins_SJ.tolist(), strict=True):
                margins[f"{kind}:{name}"] = margin_J
        for index, group in enumerate(bank.prunable):
            margin_B = bank.importance(group) - bank.alpha_p[index]
            margins[f"p:{group.id}"] = [float(margin_B[margin_B > 0].min())] if (margin_B > 0).any() else []
        return GateView(
            bits_w={name: int(gates.bits_w_L[r]) for name, r in zip(bank.searched, row, strict=True)},
            bits_a={name: int(gates.bits_a_L[r]) for name, r in zip(bank.searched, row, strict=True)},
            kept={g.id: round(float(f) * g.size) for g, f in zip(bank.prunable, gates.fraction_P, strict=True)},
            margins=margins,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        last = state_dict["last"]
        self._last = None if last is None else last.to(self.space.device)

    def gather(self, on: bool) -> None:
        """Turn the layers' measuring of errors on or off; it is off in validation."""
        for name in self.bank.searched:
            self.space.layers[name].gather_metrics = on

    def _share_metrics(self) -> None:
        """Average the metrics over all ranks, each of which measured its own samples."""
        self.ranks.average_([self.space.layers[name].metric_a for name in self.bank.searched])


def settling(config: SearchConfig) -> Shape:
    """Shape of the thresholds' learning rate: constant, then down to 0 over `config.settle`, so that gates settle."""
    first, last = config.settle

    def shape(fraction: float) -> float:
        return min(1.0, max(0.0, (last - fraction) / (last - first)))

    return shape


def take_turns(bank: GateBank, config: SearchConfig, step: int) -> None:
    """With `config.alternate`, let weight and pruning thresholds learn on even steps, activation thresholds on odd."""
    # Before the forward pass: a threshold that needs no gradient there would never move.
    even = step % 2 == 0
    bank.alpha_w.requires_grad_(even or not config.alternate)
    bank.alpha_p.requires_grad_(even or not config.alternate)
    bank.alpha_a.requires_grad_(not even or not config.alternate)
