"""Why a layer has its bits: how far the gates beside the decision were from switching when the plan was kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sbs_deploy.report.history import SearchHistory
from sbs_train.contract.plan import LayerPlan, Plan


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One step between two bitwidths, or between keeping and dropping filters."""

    bits: int | None
    """The bits that the layer would have if it switched; None for filters."""
    margin: float | None
    """Metric minus threshold."""
    close: bool
    """Among the tenth of its table that is nearest to switching."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The bits of one tensor of a layer."""

    bits: int
    gate_bits: int | None
    """Where the gates stood; another number than `bits` where the plan was moved to the target. None: not searched."""
    opens: Gate | None
    """The next one to open; None at the finest bits."""
    closes: Gate | None
    """The next one to close; None at the coarsest bits."""
    since: int | None
    """Epoch, from 1."""


@dataclass(frozen=True, kw_only=True)
class LayerWhy:
    """One line of the table of layers."""

    name: str
    share: float
    """Of the plan's BOPs."""
    weights: Decision
    inputs: Decision


@dataclass(frozen=True, kw_only=True)
class GroupWhy:
    """One line of the table of pruned groups."""

    name: str
    consumers: tuple[str, ...]
    kept: int
    size: int
    gate_kept: int | None
    """Where the gates stood."""
    closes: Gate
    """The gate of the least important filters that remain."""
    since: int | None


@dataclass(frozen=True, kw_only=True)
class Why:
    """The decisions of the search."""

    layers: tuple[LayerWhy, ...]
    groups: tuple[GroupWhy, ...]


def explain(plan: Plan, history: SearchHistory) -> Why:
    """Every decision of the kept plan with the gates beside it."""
    limit = _close(
        [
            margins[at]
            for layer in plan.layers
            for margins, level in (_position(layer, kind, history) for kind in "wa")
            for at in (level - 1, level)
            if 0 <= at < len(margins)
        ]
    )
    groups = [group for group in plan.groups if group.id in history.over_time("kept")]
    least = {group.id: next(iter(history.margins(f"p:{group.id}")), None) for group in groups}
    limit_p = _close([margin for margin in least.values() if margin is not None])
    return Why(
        layers=tuple(
            LayerWhy(
                name=layer.name,
                share=plan.cost.shares[layer.name],
                weights=_decision(layer, "w", history, limit),
                inputs=_decision(layer, "a", history, limit),
            )
            for layer in plan.layers
        ),
        groups=tuple(
            GroupWhy(
                name=group.id,
                consumers=tuple(group.consumers),
                kept=len(group.kept),
                size=group.size,
                gate_kept=history.chosen_row.get("kept", {}).get(group.id),
                closes=_gate(None, least[group.id], limit_p),
                since=history.settled_in("kept", group.id),
            )
            for group in groups
        ),
    )


def _decision(layer: LayerPlan, kind: str, history: SearchHistory, limit: float) -> Decision:
    bits = layer.bits_w if kind == "w" else layer.bits_a
    gate_bits = history.chosen_row.get(f"bits_{kind}", {}).get(layer.name)
    candidates = history.bits_weights if kind == "w" else history.bits_activations
    if gate_bits is None or bits not in candidates:
        return Decision(bits=bits, gate_bits=None, opens=None, closes=None, since=None)
    margins, level = _position(layer, kind, history)
    opens, closes = (
        _gate(candidates[to], margins[at] if at < len(margins) else None, limit) if 0 <= to < len(candidates) else None
        for to, at in ((level + 1, level), (level - 1, level - 1))
    )
    since = history.settled_in(f"bits_{kind}", layer.name) if bits == gate_bits else None
    return Decision(bits=bits, gate_bits=gate_bits, opens=opens, closes=closes, since=since)


def _position(layer: LayerPlan, kind: str, history: SearchHistory) -> tuple[list[float], int]:
    """Margins of a tensor's gates, and the index of the first that is closed; no margins where nothing was searched."""
    bits, candidates = (layer.bits_w, history.bits_weights) if kind == "w" else (layer.bits_a, history.bits_activations)
    if bits not in candidates:
        return [], 0
    return history.margins(f"{kind}:{layer.name}"), candidates.index(bits)


def _gate(bits: int | None, margin: float | None, limit: float) -> Gate:
    return Gate(bits=bits, margin=margin, close=margin is not None and abs(margin) <= limit)


def _close(margins: Sequence[float]) -> float:
    """The distance from 0 that a tenth of the margins, and at least one, stay within."""
    distances = sorted(abs(margin) for margin in margins)
    return distances[math.ceil(len(distances) / 10) - 1] if distances else -1.0
