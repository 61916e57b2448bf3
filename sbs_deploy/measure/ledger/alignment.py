"""What channels off the multiple that a backend computes in cost, and what keeping to it avoided.

A backend computes channels in multiples of m: where k of n are kept, min(n, ceil(k/m) m) of them. What lies between is
padding: it is computed, and thrown away. Where nothing is pruned, n count as computed: what a backend adds to that, no
pruning can avoid.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sbs_deploy.backends.spec import Backend
from sbs_train.contract import cost
from sbs_train.contract.plan import LayerPlan, Plan
from sbs_train.contract.records import SearchDevice


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A pruned plan on one backend. Shares are of multiply-accumulates."""

    multiple: int
    """Channels are computed in multiples of this."""
    padding: float
    """Padding's share of what is executed, 0 to 1."""
    padding_ms: float | None
    """Milliseconds of padding: layers' times by their shares of it; None without times to go by."""
    padded: tuple[str, ...]
    """Layers with padding, the most of it first."""
    avoided: float
    """At most this share of the plan lies above the fewest channels that cost the same: a search that knows
    nothing of the multiple could have pruned it, and saved no time."""
    channels: int
    """At most so many of the channels kept in pruned groups lie above the fewest that cost the same."""


def alignment_of(
    plan: Plan, backend: Backend | None, multiple: int, times: Iterable[tuple[Sequence[str], float]] | None = None
) -> Alignment | None:
    """What a backend's multiple makes of a plan; None where nothing was pruned, or any number of channels is as good.

    Args:
        times: layers that the backend runs as one, and the milliseconds that they take.
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


def channel_multiple(backend: Backend | None, device: SearchDevice | None) -> int:
    """What a backend computes channels in multiples of: as measured where `device` is one, else as its makers say."""
    if backend is None:
        return 1
    return device.align if device is not None and device.target == backend.label else backend.channel_multiple


def fewest(kept: int, multiple: int) -> int:
    """The fewest channels that cost as much as `kept` do, whatever the size of their group.

    >>> fewest(16, 16), fewest(17, 16), fewest(32, 16)
    (1, 17, 17)
    """
    return (kept - 1) // multiple * multiple + 1


def aligned(layer: LayerPlan, plan: Plan, multiple: int) -> bool:
    """Whether channels that lie between layers come in the backend's multiple; images and classes are as they are."""
    into, out_of = plan.group(layer.group_in), plan.group(layer.group_out)
    inside = [*([layer.kept_in] if into.producers else []), *([layer.kept_out] if out_of.consumers else [])]
    return all(channels % multiple == 0 for channels in inside)


def _share(padding: Mapping[str, float], executed: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(padding.get(name, 0.0) for name in names) / sum(executed[name] for name in names)
