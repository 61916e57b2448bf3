"""How the search went: the rows it left in metrics.json, one an epoch.

A row holds what was logged (`loss`, `lambda`, `reduction`, `flips`, and `val_top1` and `val_loss` where a plan was
validated), where every gate stood (`bits_w`, `bits_a` by layer, `kept` by group) and `margins` by gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sbs_deploy.report.goal import asked_reduction, unit_of
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, grid_bits
from sbs_train.contract.target import Unit


@dataclass(frozen=True, kw_only=True)
class SearchHistory:
    """The epochs of a search."""

    metric: str
    """What gates were judged by: "loss" or "error"."""
    unit: Unit
    """Of the search's cost and its reductions."""
    limited: bool
    """Whether BOPs were limited as well, where the cost was in milliseconds."""
    target: float | None
    """The reduction that was asked for, if any."""
    rows: tuple[dict[str, Any], ...]
    chosen: int
    """Index of the row whose plan was kept."""
    bits_weights: tuple[int, ...]
    """Candidates, coarse to fine."""
    bits_activations: tuple[int, ...]
    sizes: dict[str, int]
    """Channels of every group before pruning."""

    @property
    def epochs(self) -> list[int]:
        """Counted from 1, as the log does."""
        return [int(row["epoch"]) + 1 for row in self.rows]

    @property
    def chosen_row(self) -> dict[str, Any]:
        """Where everything stood when the plan was kept."""
        return self.rows[self.chosen]

    def series(self, name: str) -> list[float | None]:
        """One scalar over the epochs; None where it was not measured."""
        return [row.get(name) for row in self.rows]

    def over_time(self, kind: str) -> dict[str, list[int | None]]:
        """`bits_w` and `bits_a` by layer, `kept` by group, over the epochs."""
        names = dict.fromkeys(name for row in self.rows for name in row.get(kind, {}))
        return {name: [row.get(kind, {}).get(name) for row in self.rows] for name in names}

    def settled_in(self, kind: str, name: str) -> int | None:
        """The epoch since which the value stayed as it was when the plan was kept."""
        values = self.over_time(kind).get(name)
        if values is None or values[self.chosen] is None:
            return None
        first = self.chosen
        while first > 0 and values[first - 1] == values[self.chosen]:
            first -= 1
        return self.epochs[first]

    def margins(self, gate: str) -> list[float]:
        """Metric minus threshold when the plan was kept, coarse to fine; `gate` such as "w:LAYER" or "p:GROUP"."""
        found: list[float] = self.chosen_row.get("margins", {}).get(gate, [])
        return found


def search_history(plan: Plan, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> SearchHistory | None:
    """The history of a run from its config.json and metrics.json; None where it recorded none."""
    rows = tuple(metrics.get("search", {}).get("history", ()))
    if not rows:
        return None
    groups = {group.id for group in plan.groups}
    unknown = [name for row in rows for name in row.get("kept", {}) if name not in groups]
    if unknown:
        raise SbsError(f"metrics.json: the history names {unknown[0]}, plan.json does not; train again with --out")
    budget = metrics.get("budget", {})
    # The search keeps the plan with the best validation accuracy, the later one of equals.
    scores = [(row["val_top1"], index) for index, row in enumerate(rows) if row.get("val_top1") is not None]
    return SearchHistory(
        metric=config.get("search", {}).get("metric", "loss"),
        unit=unit_of(budget),
        limited=budget.get("max_bops") is not None,
        target=asked_reduction(plan, config, budget),
        rows=rows,
        chosen=max(scores)[1] if scores else len(rows) - 1,
        bits_weights=grid_bits(plan.bits_weights),
        bits_activations=grid_bits(plan.bits_activations),
        sizes={group.id: group.size for group in plan.groups},
    )
