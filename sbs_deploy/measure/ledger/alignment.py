"""Cost of channels that are no multiple of the backend's, and savings by aligned channels.

A backend computes channels in multiples of m: with k of n channels kept, min(n, ceil(k/m) m). The difference to k is
padding, computed in vain. An unpruned layer counts n channels: no pruning can avoid a backend's further padding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sbs_deploy.backends.spec import Backend
from sbs_train.contract import cost
from sbs_train.contract.plan import LayerPlan, Plan


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A pruned plan on one backend. Shares are of multiply-accumulates."""

    multiple: int
    """Multiple in which the backend computes channels."""
    padding: float
    """Share of padding in the executed multiply-accumulates, 0 to 1."""
    padding_ms: float | None
    """Milliseconds of padding: layers' times multiplied by their shares of padding; None without layer times."""
    padded: tuple[str, ...]
    """Layers with padding, the largest first."""
    avoided: float
    """Upper bound of the share of the plan above the fewest channels of equal cost: a search without alignment could
    have pruned this share without saving time."""
    channels: int
    """Upper bound of the kept channels of pruned groups above the fewest channels of equal cost."""


def alignment_of(
    plan: Plan, backend: Backend | None, multiple: int, times: Iterable[tuple[Sequence[str], float]] | None = None
) -> Alignment | None:
    """Padding of a plan on a backend; None if nothing was pruned, or the backend takes any number of channels.

    Args:
        times: milliseconds by layers that the backend runs as one.
    """
    pruned = [group for group in plan.groups if len(group.kept) < group.size]
    if backend is None or multiple == 1 or not pruned:
        return None
    kept = {group.id: len(group.kept) for group in plan.groups}
    computed = {group.id: cost.computed_channels(len(group.kept), group.size, multiple) for group in plan.groups}
    least = kept | {group.id: fewest(len(group.kept), multiple) for group in pruned}
    macs, executed, needed = (
        {layer.name: plan.kept_macs(layer, channels) for layer in plan.layers} for channels in (kept, computed, least)
    )
    padding = {name: executed[name] - macs[name] for name in macs if executed[name] > macs[name]}
    return Alignment(
        multiple=multiple,
        padding=sum(padding.values()) / sum(executed.values()),
        padding_ms=None if times is None else sum(ms * _share(padding, executed, names) for names, ms in times),
        padded=tuple(sorted(padding, key=lambda name: -padding[name])),
        avoided=1 - sum(needed.values()) / sum(macs.values()),
        channels=sum(kept.values()) - sum(least.values()),
    )


def fewest(kept: int, multiple: int) -> int:
    """The fewest channels that cost as much as `kept` channels.

    >>> fewest(16, 16), fewest(17, 16), fewest(32, 16)
    (1, 17, 17)
    """
    return (kept - 1) // multiple * multiple + 1


def aligned(layer: LayerPlan, plan: Plan, multiple: int) -> bool:
    """Whether a layer's channels, except those of images and classes, are multiples of the backend's."""
    into, out_of = plan.group(layer.group_in), plan.group(layer.group_out)
    inside = [*([layer.kept_in] if into.producers else []), *([layer.kept_out] if out_of.consumers else [])]
    return all(channels % multiple == 0 for channels in inside)


def _share(padding: Mapping[str, float], executed: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(padding.get(name, 0.0) for name in names) / sum(executed[name] for name in names)
