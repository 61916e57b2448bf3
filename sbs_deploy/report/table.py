"""The tables that people read in a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sbs_deploy.measure import units

if TYPE_CHECKING:
    from rich.table import Table

    from sbs_deploy.report.comparison import Point
    from sbs_deploy.report.stages import StageRow


def summary_table(stages: Sequence["StageRow"]) -> "Table":
    """Stage, top-1, BOPs, reduction, size, latency p50, speed-up over FP32."""
    table = _table("stage", "top-1", "BOPs", "reduction", "size", "latency p50", "speed-up")
    for row in stages:
        table.add_row(
            _plain(row.stage),
            units.percent(row.top1),
            units.si(row.bops),
            units.times(row.reduction),
            units.si(row.size_bytes, "B"),
            units.milliseconds(row.latency_p50_ms),
            units.times(row.speedup),
        )
    return table


def bench_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """One line a measurement; what could not be measured says why."""
    table = _table("artifact", "backend", "batch", "threads", "p50", "p90", "p99", "variation", "speed-up")
    for row in rows:
        head = (_plain(row["artifact"]), row["backend"], str(row["batch"]), str(row["threads"] or units.DASH))
        if row["error"] is not None:
            table.add_row(*head, "not measured", *[units.DASH] * 4)
            continue
        table.add_row(
            *head,
            *(units.milliseconds(row[key]) for key in ("latency_p50_ms", "p90", "p99")),
            units.percent(100 * row["cov"]) + (" !" if row["warnings"] else ""),
            units.times(row["speedup_vs_fp32"]),
        )
    return table


def runs_table(points: Sequence["Point"]) -> "Table":
    """One line a run."""
    table = _table("run", "top-1", "FP32", "BOPs", "reduction", "as executed", "weights", "latency p50", "speed-up")
    for point in points:
        table.add_row(
            _plain(point.name),
            units.percent(point.top1),
            units.percent(point.top1_fp32),
            units.si(point.bops_paper),
            units.times(point.reduction_paper),
            units.times(point.reduction_deployable),
            units.si(point.size_bytes, "B"),
            units.milliseconds(point.latency_ms),
            units.times(point.speedup),
        )
    return table


def print_table(table: "Table") -> None:
    """On stdout, at its natural width where that is not a terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "backend" else "right", no_wrap=True)
    return table


def _plain(text: str) -> Any:
    """Text in which brackets are not markup."""
    from rich.text import Text

    return Text(text)
