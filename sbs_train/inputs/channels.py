"""Which channels belong together, and what every layer costs: read off a float network by running it.

torch-pruning's dependency graph (Fang et al., CVPR 2023) says which layers' outputs and inputs share one axis.
"""

from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from sbs_train.contract.plan import ChannelGroup, InputSpec

INPUT_GROUP = "input"


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the plan needs to know of one layer."""

    macs: int
    """For one image."""
    group_in: str
    group_out: str


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Layers, in the order in which they run, and channel groups of a network."""

    layers: dict[str, LayerShape]
    groups: list[ChannelGroup]
    reasons: dict[str, str]
    """Why a group is not pruned, by its id."""

    @property
    def fixed(self) -> set[str]:
        """The first and the last layer, whose bits are not searched."""
        names = list(self.layers)
        return {names[0], names[-1]}

    @property
    def total_macs(self) -> int:
        return sum(layer.macs for layer in self.layers.values())


def topology_of(model: nn.Module, input: InputSpec) -> Topology:
    """Trace `model` once on an image of zeros and group its channels; the model is left as it was."""
    example = torch.zeros(1, input.channels, input.height, input.width, device=next(model.parameters()).device)
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    was_training = model.training
    model.eval()
    macs = _count_macs(model, layers, example)
    groups, reasons = _groups(model, layers, example, _blocks(model, layers, first=next(iter(macs))))
    model.train(was_training)
    shapes = {}
    for name in macs:
        group_in = next((g.id for g in groups if name in g.consumers), INPUT_GROUP)
        group_out = next(g.id for g in groups if name in g.producers)
        shapes[name] = LayerShape(macs=macs[name], group_in=group_in, group_out=group_out)
    return Topology(layers=shapes, groups=groups, reasons=reasons)


@torch.no_grad()
def _count_macs(model: nn.Module, layers: dict[str, nn.Module], example: Tensor) -> dict[str, int]:
    """MACs for one image of every layer that ran, in the order in which they did."""
    macs: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        positions = output.numel() // output.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        macs[name] = macs.get(name, 0) + weight.numel() * positions

    hooks = [m.register_forward_hook(lambda m, _, y, n=n: count(n, m, y)) for n, m in layers.items()]
    model(example)
    for hook in hooks:
        hook.remove()
    return macs


def _groups(
    model: nn.Module, layers: dict[str, nn.Module], example: Tensor, blocks: list[str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    names = {module: name for name, module in layers.items()}
    groups: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    consumed: set[str] = set()
    for name, layer in layers.items():
        if any(name in group.producers for group in groups):
            continue
        size = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        assert isinstance(size, int)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        producers: list[str] = []
        consumers: list[str] = []
        for dependency, _ in graph.get_pruning_group(layer, prune, idxs=list(range(size))):
            touched = names.get(dependency.target.module)
            if touched is None:
                continue
            (producers if graph.is_out_channel_pruning_fn(dependency.handler) else consumers).append(touched)
        producers = [n for n in layers if n in producers]
        consumers = [n for n in layers if n in consumers or (n in producers and _is_depthwise(layers[n]))]
        consumed.update(consumers)
        reason = _why_not(layers, blocks, producers, consumers, size)
        if reason:
            reasons[name] = reason
        groups.append(
            ChannelGroup(
                id=name,
                size=size,
                kept=list(range(size)),
                prunable=not reason,
                producers=producers,
                consumers=consumers,
            )
        )
    outside = [n for n in layers if n not in consumed]
    if outside:
        size = example.shape[1]
        whole = ChannelGroup(
            id=INPUT_GROUP, size=size, kept=list(range(size)), prunable=False, producers=[], consumers=outside
        )
        groups.insert(0, whole)
        reasons[INPUT_GROUP] = "the network's input"
    return groups, reasons


def _blocks(model: nn.Module, layers: dict[str, nn.Module], *, first: str) -> list[str]:
    """Names of the modules that hold several layers and are no mere list of modules.

    What holds the network's first layer is the network, or a stem, and no block.
    """
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    candidates = [name for name, module in model.named_modules() if not isinstance(module, lists)]
    inside = {name: [layer for layer in layers if _is_inside(layer, name)] for name in candidates}
    return [name for name in candidates if len(inside[name]) > 1 and first not in inside[name]]


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _why_not(
    layers: dict[str, nn.Module], blocks: list[str], producers: list[str], consumers: list[str], size: int
) -> str:
    """Why a group is left whole: only filters inside a block are pruned, as in the paper (section 4.1).

    A network that has no blocks is pruned everywhere.
    """
    dense = [name for name in producers if not _is_depthwise(layers[name])]
    if not consumers:
        return "the network's output"
    if len(dense) != 1:
        return f"a residual stream: {len(dense)} layers write to it"
    members = (*producers, *consumers)
    if blocks and not any(all(_is_inside(name, block) for name in members) for block in blocks):
        return f"not inside a block: {consumers[-1]} reads it"
    for name in consumers:
        layer = layers[name]
        if isinstance(layer, nn.Linear) and layer.in_features != size:
            return f"{name} reads it flattened"
        if isinstance(layer, nn.Conv2d) and layer.groups not in (1, layer.in_channels):
            return f"{name} is a grouped convolution"
    return ""


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels and layer.groups > 1
