"""History of the search by epoch: logged scalars, and states and margins of all gates."""

from dataclasses import dataclass
from typing import Literal

from sbs_deploy.report.goal import asked_reduction
from sbs_train.contract.plan import Plan, grid_bits
from sbs_train.contract.records import Epoch, Metrics
from sbs_train.contract.results import Config
from sbs_train.contract.target import Unit


@dataclass(frozen=True, kw_only=True)
class SearchHistory:
    """The epochs of a search."""

    metric: str
    """Metric of the gates: "loss" or "error"."""
    unit: Unit
    """Unit of the search's cost."""
    target: float | None
    """The reduction that the target asks for; None without a target."""
    rows: tuple[Epoch, ...]
    chosen: Epoch
    """The epoch whose plan was kept."""
    bits_weights: tuple[int, ...]
    """Candidate weight bits, coarse to fine."""
    bits_activations: tuple[int, ...]

    def margins(self, kind: Literal["w", "a"], layer: str) -> dict[int, float]:
        """Margins of a layer's weights or input in the kept epoch, by the bits a gate opens; empty if not searched."""
        candidates = self.bits_weights if kind == "w" else self.bits_activations
        return dict(zip(candidates[1:], self.chosen.margins.get(f"{kind}:{layer}", ()), strict=False))

    def margin_p(self, group: str) -> float | None:
        """Margin of the least important kept block of filters of a group; None if the group has no gate."""
        return next(iter(self.chosen.margins.get(f"p:{group}", ())), None)


def search_history(plan: Plan, config: Config, metrics: Metrics) -> SearchHistory | None:
    """The history of a run's search; None if the run has none."""
    rows = tuple(metrics.search.history)
    if not rows:
        return None
    # The search keeps the plan with the best validation score, of equals the later one.
    scores = [(row.val_score, index) for index, row in enumerate(rows) if row.val_score is not None]
    return SearchHistory(
        metric=config.search.metric,
        unit=metrics.budget.unit,
        target=asked_reduction(plan, config, metrics.budget),
        rows=rows,
        chosen=rows[max(scores)[1] if scores else -1],
        bits_weights=grid_bits(plan.bits_weights),
        bits_activations=grid_bits(plan.bits_activations),
    )
