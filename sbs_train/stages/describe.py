"""What a search will do to a model, and what it leaves alone and why, before it has done anything."""

from collections.abc import Sequence
from dataclasses import dataclass

from sbs_train.network.network import Network
from sbs_train.quant.layers import layer_kind


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One convolution or linear layer."""

    name: str
    kind: str
    macs: int
    """MACs for one sample."""
    weights: int
    group_in: str
    group_out: str
    float_reason: str
    """Why the layer stays in float; empty where it is quantized."""


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """Channels that exist or vanish together."""

    id: str
    size: int
    whole_reason: str
    """Why no channel is pruned; empty where channels may be."""
    producers: list[str]
    consumers: list[str]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A model as the search sees it; `str` gives it as a table."""

    layers: list[LayerRow]
    groups: list[GroupRow]
    float_additions: dict[str, str]
    """Additions of two feature maps that stay in float, with the reasons."""
    idle: list[str]
    """Layers that the example does not call; they stay as they are."""
    other_macs: int
    """MACs of products outside of layers: not quantized, and not in the BOPs."""

    def __str__(self) -> str:
        rows = [("layer", "kind", "MACs", "weights", "input group", "output group", "in float, because")]
        rows += [
            (one.name, one.kind, f"{one.macs:,}", f"{one.weights:,}", one.group_in, one.group_out, one.float_reason)
            for one in self.layers
        ]
        groups = [("group", "channels", "whole, because")]
        groups += [(one.id, str(one.size), one.whole_reason) for one in self.groups]
        left = [("left in float", "because"), *self.float_additions.items()]
        left += [(name, "it is not called") for name in self.idle]
        left += [(f"{self.other_macs:,} MACs", "products outside of layers")] if self.other_macs else []
        return "\n\n".join(_table(table) for table in (rows, groups, left) if len(table) > 1)


def describe(network: Network) -> Description:
    """The layers, channel groups and additions of a network."""
    topology = network.topology
    return Description(
        layers=[
            LayerRow(
                name=name,
                kind=layer_kind(network.model.get_submodule(name)),
                macs=shape.macs,
                weights=shape.weights,
                group_in=shape.group_in,
                group_out=shape.group_out,
                float_reason=shape.float_reason,
            )
            for name, shape in topology.layers.items()
        ],
        groups=[
            GroupRow(
                id=group.id,
                size=group.size,
                whole_reason="" if group.prunable else topology.reasons.get(group.id, ""),
                producers=group.producers,
                consumers=group.consumers,
            )
            for group in topology.groups
        ],
        float_additions={one.place.name: one.float_reason for one in network.additions if one.float_reason},
        idle=list(topology.idle),
        other_macs=topology.other_macs,
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
