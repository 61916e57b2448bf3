"""The search's target, the expected cost and the measured cost."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sbs_deploy.measure import units
from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Budget, Metrics, SearchDevice
from sbs_train.contract.results import Config, Row, TimedRow
from sbs_train.contract.target import target_reduction

_ENGINE = re.compile(r" \([^()]*\)$")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The target of a run and its outcome."""

    asked: str
    """The target as given: 60x, 32G, 1.2ms."""
    max_bops: str | None
    """The limit of `--max-bops`, as given."""
    wanted: float
    """The reduction of the search's cost that the target asks for."""
    reduction: float
    """The plan's reduction, as the search expects it."""
    expected_ms: float | None
    """Predicted milliseconds of the plan on `device`; None for a cost in Bit-Operations."""
    reached: bool
    """Whether the plan fits the budget, as the search expects it."""
    device: SearchDevice | None
    """The device of `--cost`; None for a cost in Bit-Operations, or if the run has no record of the device."""
    measured: TimedRow | None
    """The plan's engine on the device's backend and batch size; None if not measured."""

    @property
    def excess(self) -> float | None:
        """Part by which the measured engine is slower than the target, 0 or less if it is not; None if not measured.

        A target relative to FP32 is compared with FP32 in the same measurement.
        """
        if self.measured is None or self.expected_ms is None:
            return None
        speedup = self.measured.speedup_vs_fp32
        if self.asked.endswith("x") and speedup is not None:
            return self.wanted / speedup - 1
        return self.measured.latency_p50_ms * self.wanted / (self.expected_ms * self.reduction) - 1

    @property
    def details(self) -> str:
        """Target, expected and measured cost as text."""
        found = [f"asked {self.asked}" + (f" and {self.max_bops} BOPs" if self.max_bops else "")]
        found[0] += f" on {self.device.target}" if self.device else ""
        if self.expected_ms is None:
            return f"{found[0]}, plan {units.times(self.reduction)} fewer BOPs"
        found += [f"expected {units.milliseconds(self.expected_ms)}, {units.times(self.reduction)}"]
        if self.measured is not None and self.excess is not None:
            row, missed = self.measured, f" (MISSED by {100 * self.excess:.2g} %)" if self.excess > 0 else ""
            found.append(
                f"measured {units.milliseconds(row.latency_p50_ms)}, {units.times(row.speedup_vs_fp32)}{missed}"
            )
            found += [] if _same(row.device or "", self.device) else [f"on another device: {row.device}"]
        return "; ".join(found)


def search_goal(
    plan: Plan, config: Config, metrics: Metrics, rows: Sequence[Row], device: SearchDevice | None
) -> Goal | None:
    """The target and its outcome; None without a target, or if the outcome is unknown.

    Args:
        rows: rows of bench.json.
        device: the device of `--cost`, if any.

    Raises:
        SbsError: the target cannot be read.
    """
    budget = metrics.budget
    wanted = asked_reduction(plan, config, budget)
    if config.target is None or wanted is None or budget.reduction is None or budget.reached is None:
        return None
    return Goal(
        asked=config.target.strip(),
        max_bops=budget.max_bops,
        wanted=wanted,
        reduction=budget.reduction,
        expected_ms=budget.expected_ms,
        reached=budget.reached,
        device=device,
        measured=next((row for row in rows if isinstance(row, TimedRow) and _is_of(row, device)), None),
    )


def asked_reduction(plan: Plan, config: Config, budget: Budget) -> float | None:
    """The reduction that was asked for; in milliseconds relative to the dense network, which the budget tells of."""
    unit = budget.unit
    if config.target is None:
        return None
    if unit == "BOPs":
        return target_reduction(config.target, unit, plan.cost.bops_fp32)
    if budget.expected_ms is None or budget.reduction is None:
        return None
    return target_reduction(config.target, unit, budget.expected_ms * budget.reduction)


def _is_of(row: TimedRow, device: SearchDevice | None) -> bool:
    return device is not None and (
        (row.backend, row.precision, row.batch) == (device.target, device.precision, device.batch)
    )


def _same(name: str, device: SearchDevice | None) -> bool:
    """Whether a row's device, without the engine in brackets, is the device of `--cost`."""
    plain = _ENGINE.sub("", name)
    return device is None or plain in device.device or device.device in plain
