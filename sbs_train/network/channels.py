"""Channel groups and layer costs of a float network, found by running it.

torch-pruning's dependency graph (Fang et al., CVPR 2023) says which layers' outputs and inputs share one axis.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sbs_train.contract import limits
from sbs_train.contract.plan import ChannelGroup
from sbs_train.example import Example
from sbs_train.network.census import Ran, census_of
from sbs_train.network.dependencies import bounded, dependencies_of
from sbs_train.network.joins import joined_by
from sbs_train.network.trial import unsafe_groups

INPUT_GROUP = "input"
Reach = Literal["inside", "coupled"]
"""Which channels may be pruned; see `SearchConfig.prune`."""


@dataclass(frozen=True, kw_only=True)
class LayerShape(Ran):
    """A layer of a forward pass, with its size and the channel groups of its input and output."""

    weights: int
    group_in: str
    group_out: str


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Layers, in the order in which they run, and channel groups of a network."""

    layers: dict[str, LayerShape]
    groups: list[ChannelGroup]
    reasons: dict[str, str]
    """Why a group is not pruned, by its id."""
    other_macs: int = 0
    """MACs of products outside of layers, which BOPs exclude."""
    idle: tuple[str, ...] = ()
    """Layers that are not called: auxiliary heads, data-dependent branches, layers whose weights another one reads."""

    @property
    def float_share(self) -> float:
        """Part of the MACs in layers that cannot be quantized; their channels are not pruned either."""
        return sum(layer.macs for layer in self.layers.values() if layer.float_reason) / self.total_macs

    @property
    def fixed(self) -> set[str]:
        """The first and the last layer, whose bits are not searched."""
        names = list(self.layers)
        return {names[0], names[-1]}

    @property
    def quantizable(self) -> list[str]:
        """Names of the layers that need not stay in float."""
        return [name for name, layer in self.layers.items() if not layer.float_reason]

    @property
    def total_macs(self) -> int:
        return sum(layer.macs for layer in self.layers.values())


def topology_of(
    model: nn.Module,
    example: Example,
    reach: Reach = "inside",
    in_float: Mapping[str, str] | None = None,
    whole: Collection[str] = (),
) -> Topology:
    """Trace `model` on an example and group its channels; the model does not change.

    Args:
        in_float: further layers that shall stay in float, with the reasons.
        whole: layers whose inputs and outputs are not pruned.

    Raises:
        SbsError: the model cannot run the example, runs no layer, or makes layers as it runs.
    """
    was_training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    census = census_of(model, example, in_float)
    grouping = _Grouping(model, census.ran, example, reach)
    kept = {group.id: kept for group in grouping.groups if (kept := _first_in(group, whole))}
    unsafe = unsafe_groups(model, [g for g in grouping.groups if g.prunable and g.id not in kept], example)
    for name, module in model.named_modules():
        module.training = was_training[name]
    groups, reasons = [], dict(grouping.reasons)
    for group in grouping.groups:
        if group.id in unsafe:
            reasons[group.id] = limits.TRIAL_FAILS
        if group.prunable and group.id in kept:
            reasons[group.id] = limits.KEPT_WHOLE.format(layer=kept[group.id])
        prunable = group.prunable and group.id not in unsafe and group.id not in kept
        groups.append(group.model_copy(update={"prunable": prunable}))
    shapes = {
        name: LayerShape(
            **vars(ran),
            weights=_numel(grouping.layers[name].weight),
            group_in=grouping.group_in[name],
            group_out=grouping.group_out[name],
        )
        for name, ran in census.ran.items()
    }
    return Topology(
        layers=shapes, groups=groups, reasons=reasons, other_macs=census.other_macs, idle=tuple(census.idle)
    )


def _first_in(group: ChannelGroup, layers: Collection[str]) -> str | None:
    return next((name for name in (*group.producers, *group.consumers) if name in layers), None)


class _Grouping:
    """The channel groups of a network, and the group that each layer reads and writes."""

    def __init__(self, model: nn.Module, ran: dict[str, Ran], example: Example, reach: Reach) -> None:
        # A copy: tracing runs the network with gradients, and a network may keep tensors of the run.
        model = copy.deepcopy(model)
        self.layers = {name: model.get_submodule(name) for name in ran}
        self.names = {module: name for name, module in self.layers.items()}
        self.in_float = {name for name, one in ran.items() if one.float_reason}
        self.shared = {name for name, one in ran.items() if len(one.modules) > 1}
        self.blocks = _blocks(model, list(ran), first=next(iter(ran)))
        self.reach = reach
        self.groups: list[ChannelGroup] = []
        self.reasons: dict[str, str] = {}
        self.group_out: dict[str, str] = {}
        self.group_in: dict[str, str] = {}
        self._partial: dict[str, list[str]] = {}
        """By layer, the groups that are only a part, or a reshaped form, of its input."""
        self._graph, self._broken = dependencies_of(model, example)
        for name in self.layers:
            if name not in self.group_out:
                self._add_group(name)
        self._add_inputs([x.shape[1] for x in example.tensors if x.dim() > 1 and x.is_floating_point()])

    def _add_group(self, name: str) -> None:
        size = _channels_out(self.layers[name])
        producers, consumers, joined, reason = [name], list[str](), "", self._broken
        if not reason:
            try:
                producers, consumers, joined = self._coupled(name, size)
            except Exception as error:  # noqa: BLE001  the graph lacks a layer, or cannot follow an operation
                reason = limits.NOT_FOLLOWED.format(error=type(error).__name__)
        producers = [n for n in producers if n not in self.group_out and _channels_out(self.layers[n]) == size]
        whole = [n for n in consumers if _channels_in(self.layers[n]) == size and n not in self.group_in]
        for consumer in consumers:
            if consumer not in whole:
                self._partial.setdefault(consumer, []).append(name)
        reason = reason or self._why_not(producers, consumers, whole, joined)
        if reason:
            self.reasons[name] = reason
        self.group_out |= dict.fromkeys(producers, name)
        self.group_in |= dict.fromkeys(whole, name)
        self.groups.append(
            ChannelGroup(
                id=name,
                size=size,
                kept=list(range(size)),
                prunable=not reason,
                producers=producers,
                consumers=whole,
            )
        )

    def _coupled(self, name: str, size: int) -> tuple[list[str], list[str], str]:
        """(writers, readers, operation) of a layer's channels, by the dependency graph.

        The operation is what joins the outputs of several writers, except a gate; empty if none does.
        """
        layer = self.layers[name]
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        found: dict[bool, set[str]] = {True: set(), False: set()}
        # A few channels are enough to find the layers.
        with bounded():
            group = self._graph.get_pruning_group(layer, prune, idxs=sorted({0, size // 2, size - 1}))
        for dependency, _ in group:
            touched = self.names.get(dependency.target.module)
            if touched is not None:
                found[bool(self._graph.is_out_channel_pruning_fn(dependency.handler))].add(touched)
        producers = [n for n in self.layers if n in found[True]]
        # A depthwise layer reads the channels it writes.
        consumers = [n for n in self.layers if n in found[False] or (n in producers and _is_depthwise(self.layers[n]))]
        writers = {self.layers[n]: n for n in producers if not _is_depthwise(self.layers[n])}
        nodes = {id(dependency.target): dependency.target for dependency, _ in group}.values()
        return (
            producers,
            consumers,
            joined_by(nodes, writers, [self.layers[n] for n in consumers if n not in producers]),
        )

    def _add_inputs(self, channels: list[int]) -> None:
        """Add groups for inputs that no layer writes in that form: the network's own, a concatenation, a flattened map.

        Args:
            channels: size of axis 1 of the network's inputs.
        """
        given: dict[int, list[str]] = {}
        for name in self.layers:
            size = _channels_in(self.layers[name])
            if name not in self.group_in and name not in self._partial and size in channels:
                given.setdefault(size, []).append(name)
        extra = [
            (self._free(INPUT_GROUP if not index else f"{INPUT_GROUP}.{size}"), size, readers, limits.NETWORK_INPUT)
            for index, (size, readers) in enumerate(given.items())
        ]
        own = len(extra)
        read = {name for readers in given.values() for name in readers}
        for name in [name for name in self.layers if name not in self.group_in and name not in read]:
            writers = self._partial.get(name, [])
            reason = limits.READ_AS_PART.format(layers=", ".join(writers)) if writers else limits.NOT_WRITTEN
            extra.append((self._free(f"{name}:{INPUT_GROUP}"), _channels_in(self.layers[name]), [name], reason))
        for index, (group_id, size, consumers, reason) in enumerate(extra):
            self.reasons[group_id] = reason
            self.group_in |= dict.fromkeys(consumers, group_id)
            whole = ChannelGroup(
                id=group_id, size=size, kept=list(range(size)), prunable=False, producers=[], consumers=consumers
            )
            self.groups.insert(index if index < own else len(self.groups), whole)

    def _free(self, group: str) -> str:
        """An unused name for a group that no layer writes; it begins with a dot, which no layer's name does."""
        return f".{group}" if group in self.layers else group

    def _why_not(self, producers: list[str], consumers: list[str], whole: list[str], joined: str) -> str:
        """Why a group is not pruned, or empty: only filters inside a block are pruned, as in the paper (section 4.1).

        A network that has no blocks is pruned everywhere.
        """
        members = [*producers, *consumers]
        dense = [name for name in producers if not _is_depthwise(self.layers[name])]
        if not consumers:
            return limits.NETWORK_OUTPUT
        if self.in_float.intersection(members):
            return limits.MEMBER_IN_FLOAT.format(layer=next(n for n in members if n in self.in_float))
        if self.shared.intersection(members):
            # A cut of one module's channels would leave the other module all of them.
            return limits.MEMBER_SHARES.format(layer=next(n for n in members if n in self.shared))
        for name in members:
            layer = self.layers[name]
            if getattr(layer, "groups", 1) > 1 and not _is_depthwise(layer):
                return limits.GROUPED.format(layer=name)
            if isinstance(layer, nn.ConvTranspose2d):
                return limits.TRANSPOSED.format(layer=name)
        for name in consumers:
            if name not in whole:
                linear = isinstance(self.layers[name], nn.Linear)
                return (limits.READ_FLATTENED if linear else limits.READ_BESIDE).format(layer=name)
        if self.reach == "inside":
            if not dense:
                return limits.ONLY_DEPTHWISE
            if len(dense) > 1 and joined:
                stream = limits.RESIDUAL_STREAM if joined == "add" else limits.OTHER_STREAM
                return stream.format(layers=len(dense), operation=joined)
            if self.blocks and not any(all(_is_inside(name, block) for name in members) for block in self.blocks):
                return limits.OUTSIDE_BLOCKS.format(layer=consumers[-1])
        return ""


def _blocks(model: nn.Module, layers: list[str], *, first: str) -> list[str]:
    """Names of the blocks: modules with several layers that are no plain list of modules.

    A module with the network's first layer is the network or a stem, and no block.
    """
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    candidates = [name for name, module in model.named_modules() if not isinstance(module, lists)]
    inside = {name: [layer for layer in layers if _is_inside(layer, name)] for name in candidates}
    return [name for name in candidates if len(inside[name]) > 1 and first not in inside[name]]


def _numel(weight: Any) -> int:
    return int(weight.numel())


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer has one filter per channel, and as many output as input channels."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _channels_in(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def _channels_out(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]
