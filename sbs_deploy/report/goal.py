"""What the search was asked for, and what became of it: as it expected, and as it was measured."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbs_deploy.measure import units
from sbs_train.contract.device import SearchDevice
from sbs_train.contract.plan import Plan
from sbs_train.contract.target import Unit, target_reduction

Row = Mapping[str, Any]
_ENGINE = re.compile(r" \((OpenVINO|\w+ExecutionProvider)\)$")
"""What engines add to the name of their device; a row's backend says it as well."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`--target` of one run."""

    asked: str
    """As it was given: 60x, 32G, 1.2ms."""
    max_bops: str | None
    """The second limit, likewise."""
    wanted: float
    """The reduction that was asked for, of the search's cost."""
    reduction: float
    """That of the plan, as the search expects it."""
    expected_ms: float | None
    """Of the plan on the device of `--cost`; None where the search's cost was in BOPs."""
    bops: float
    """Of the plan."""
    reached: bool
    """Whether the plan fits the budget, as the search expects it."""
    device: SearchDevice | None
    """The device of `--cost`; None where the search's cost was in BOPs, or the device is not known any more."""
    measured: Row | None
    """The plan's engine of that target, at that batch size; None where there is none."""

    @property
    def sentence(self) -> str:
        """Asked, expected and measured."""
        return self._bops() if self.expected_ms is None else self._milliseconds(self.expected_ms)

    @property
    def _relative(self) -> bool:
        return self.asked.endswith("x")

    def _bops(self) -> str:
        asked = f"{self.asked} fewer Bit-Operations"
        if not self._relative:
            asked = f"at most {self.asked} Bit-Operations ({units.times(self.wanted)} fewer)"
        return f"Target: {asked}. The plan needs {units.times(self.reduction)} fewer: {_outcome(self.reached)}."

    def _milliseconds(self, expected_ms: float) -> str:
        asked_ms = expected_ms * self.reduction / self.wanted
        asked = units.milliseconds(asked_ms)
        asked = f"{self.asked} the speed of FP32 ({asked})" if self._relative else f"at most {asked}"
        where = f" on {self.device.target}" if self.device is not None else ""
        limit = f", within {self.max_bops} Bit-Operations" if self.max_bops else ""
        bops = f" and {units.si(self.bops)} Bit-Operations" if self.max_bops else ""
        expected = f"Expected {units.milliseconds(expected_ms)}{bops}: {_outcome(self.reached)}."
        said = f"Target: {asked}{where}{limit}. {expected}"
        if self.measured is not None:
            return f"{said} {self._measured(self.measured, asked_ms)}"
        return said if self.device is None else f"{said} Not measured there yet."

    def _measured(self, row: Row, asked_ms: float) -> str:
        """A speed that was asked for is one against the FP32 that ran beside the engine."""
        speedup, took = row["speedup_vs_fp32"], units.milliseconds(row["latency_p50_ms"])
        relative = self._relative and speedup is not None
        if relative:
            took += f", {units.times(speedup)} the speed of FP32"
        over = (self.wanted / speedup if relative else row["latency_p50_ms"] / asked_ms) - 1
        outcome = _outcome(over <= 0) + (f" by {100 * over:.2g} %" if over > 0 else "")
        here, profiled = plain_device(row["device"]), self.device.device if self.device is not None else ""
        if here not in profiled and profiled not in here:
            took += f" (on another device: {here})"
        return f"Measured {took}: {outcome}."


def search_goal(
    plan: Plan,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    rows: Sequence[Row],
    device: SearchDevice | None,
) -> Goal | None:
    """From config.json, metrics.json and bench.json; None where there was no target, or its outcome is not known.

    Args:
        rows: of bench.json.
        device: the one of `--cost`, if any.

    Raises:
        SbsError: the target is none.
    """
    budget, target = metrics.get("budget", {}), config.get("target")
    if target is None or budget.get("reduction") is None or budget.get("reached") is None:
        return None
    wanted = asked_reduction(plan, config, budget)
    if wanted is None:
        return None
    return Goal(
        asked=target.strip(),
        max_bops=budget.get("max_bops"),
        wanted=wanted,
        reduction=budget["reduction"],
        expected_ms=budget.get("expected_ms"),
        bops=plan.cost.bops,
        reached=budget["reached"],
        device=device,
        measured=None if device is None else next((row for row in rows if _is_of(row, device)), None),
    )


def plain_device(name: str | None) -> str:
    """A row's device without its engine.

    >>> plain_device("AMD EPYC (OpenVINO)"), plain_device("NVIDIA L4 (CUDAExecutionProvider)"), plain_device("A (TM)")
    ('AMD EPYC', 'NVIDIA L4', 'A (TM)')
    """
    return _ENGINE.sub("", name or "")


def unit_of(budget: Mapping[str, Any]) -> Unit:
    """The unit of a search's cost."""
    return "ms" if budget.get("unit") == "ms" else "BOPs"


def asked_reduction(plan: Plan, config: Mapping[str, Any], budget: Mapping[str, Any]) -> float | None:
    """The reduction that was asked for; in milliseconds relative to the dense network, which the budget tells of."""
    target, unit = config.get("target"), unit_of(budget)
    if target is None:
        return None
    if unit == "BOPs":
        return target_reduction(target, unit, plan.cost.bops_fp32)
    expected_ms, reduction = budget.get("expected_ms"), budget.get("reduction")
    if expected_ms is None or reduction is None:
        return None
    return target_reduction(target, unit, expected_ms * reduction)


def _is_of(row: Row, device: SearchDevice) -> bool:
    wanted = (device.target, device.precision, device.batch)
    return row["error"] is None and (row["backend"], row["precision"], row["batch"]) == wanted


def _outcome(reached: bool) -> str:
    return "reached" if reached else "MISSED"
