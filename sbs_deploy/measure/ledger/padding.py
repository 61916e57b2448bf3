"""Channels that a backend computes in vain, as their number is no multiple of the backend's.

A backend computes channels in multiples of m: with k of n channels kept, min(n, ceil(k/m) m). The difference to k is
padding. An unpruned layer counts n channels: no pruning can avoid a backend's further padding.
"""

from dataclasses import dataclass

from sbs_deploy.backends.spec import Backend
from sbs_train.contract.cost import computed_channels
from sbs_train.contract.plan import LayerPlan, Plan


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Padding of a pruned plan on one backend."""

    multiple: int
    """Multiple in which the backend computes channels."""
    share: float
    """Share of padding in the executed multiply-accumulates, 0 to 1."""
    layers: tuple[str, ...]
    """Layers with padding, the largest first."""


def padding_of(plan: Plan, backend: Backend | None) -> Padding | None:
    """Padding of a plan on a backend; None if nothing was pruned, or the backend takes any number of channels."""
    pruned = any(len(group.kept) < group.size for group in plan.groups)
    if backend is None or backend.channel_multiple == 1 or not pruned:
        return None
    multiple = backend.channel_multiple
    computed = {group.id: computed_channels(len(group.kept), group.size, multiple) for group in plan.groups}
    executed = {layer.name: plan.kept_macs(layer, computed) for layer in plan.layers}
    padding = {layer.name: executed[layer.name] - plan.kept_macs(layer) for layer in plan.layers}
    return Padding(
        multiple=multiple,
        share=sum(padding.values()) / sum(executed.values()),
        layers=tuple(sorted(filter(padding.__getitem__, padding), key=lambda name: -padding[name])),
    )


def aligned(layer: LayerPlan, plan: Plan, multiple: int) -> bool:
    """Whether a layer's channels, except those of images and classes, are multiples of the backend's."""
    into, out_of = plan.group(layer.group_in), plan.group(layer.group_out)
    inside = [*([layer.kept_in] if into.producers else []), *([layer.kept_out] if out_of.consumers else [])]
    return all(channels % multiple == 0 for channels in inside)
