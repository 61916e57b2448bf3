"""From gates to a plan: project the gates onto the budget and freeze the network there."""

import torch

from sbs_train.contract.plan import ChannelGroup, Plan
from sbs_train.quant.gates import PRUNING_SLOPE, GateBank
from sbs_train.quant.quantizer import open_levels
from sbs_train.stages.budget import Dial, project
from sbs_train.stages.plans import Network, apply_plan, plan_of_network


def freeze(
    network: Network,
    bits_w: dict[str, int],
    bits_a: dict[str, int],
    kept: dict[str, list[int]] | None = None,
) -> Plan:
    """Freeze the named layers' bits and the named groups' channels, and return the plan; the rest stays as it is."""
    for name, layer in network.layers.items():
        if layer.gates_w is not None:
            layer.set_bits(bits_w.get(name, layer.bits_w), bits_a.get(name, layer.bits_a))
    plan = plan_of_network(network, kept)
    apply_plan(network, plan)
    return plan


@torch.no_grad()
def freeze_gates(network: Network, bank: GateBank, target: float | None) -> Plan:
    """The plan nearest to the gates that meets `target` (a reduction), if any; the network is frozen to it."""
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
            # Ascending positions add blocks from the most important down; the ones that may not go have no gate.
            removable = margin_B.sort(descending=True).values[self._floor(group) :]
            position = int((removable > 0).sum())
            self.dials.append(Dial(name=f"p:{group.id}", margins=removable.tolist(), position=position))
        self.by_name = {dial.name: dial for dial in self.dials}

    def bits(self, kind: str) -> dict[str, int]:
        """Bits by layer, of weights ("w") or inputs ("a")."""
        bits = self.space.bits_w if kind == "w" else self.space.bits_a
        return {name: bits[self.by_name[f"{kind}:{name}"].position] for name in self.bank.searched}

    def kept(self) -> dict[str, list[int]]:
        """Channel indices that remain, by group."""
        size = self.space.block_size
        result = {}
        for group in self.bank.prunable:
            blocks = self._kept_blocks(group)
            most_important = self.bank.importance(group).argsort(descending=True)[:blocks].tolist()
            result[group.id] = [c for c in range(group.size) if c // size in most_important]
        return result

    def reduction(self) -> float:
        """How many times cheaper than the dense network in FP32 the dials are as they stand."""
        kept_P = [self.space.fraction(group, self._kept_blocks(group)) for group in self.bank.prunable]
        return self.space.reduction(list(self.bits("w").values()), list(self.bits("a").values()), kept_P)

    def keep_what_is_free(self) -> None:
        """Keep the blocks that cost nothing: a device computes up to the next multiple of its alignment."""
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
