"""Tables for the terminal; the Markdown has equal columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_deploy.measure import units
from sbs_train.contract.results import LayerTime, Row, TimedRow

if TYPE_CHECKING:
    from rich.table import Table

    from sbs_deploy.report.comparison import Point
    from sbs_deploy.report.stages import StageRow

Cells = tuple[str, ...]
TOP = 10
"""Layers that are shown one by one."""
STAGES = ("stage", "score", "BOPs", "reduction", "size", "latency p50", "speed-up")
"""Columns of the table of stages."""
RUNS = ("run", "model", "score", "FP32", "fewer BOPs", "fewer as executed", "size", "latency p50", "speed-up")
"""Columns of the table of runs."""


def stage_cells(row: "StageRow") -> Cells:
    """Cells of a row in the table of stages."""
    return (
        row.stage,
        units.score(row.score, row.score_name),
        units.si(row.bops),
        units.times(row.reduction),
        units.si(row.size_bytes, "B"),
        units.milliseconds(row.latency_p50_ms),
        units.times(row.speedup),
    )


def run_cells(point: "Point") -> Cells:
    """Cells of a row in the table of runs."""
    return (
        point.name,
        point.model,
        units.score(point.score, point.score_name),
        units.score(point.score_fp32),
        units.times(point.reduction_paper),
        units.times(point.reduction_deployable),
        units.si(point.size_bytes, "B"),
        units.milliseconds(point.latency_ms),
        units.times(point.speedup),
    )


def bench_table(rows: Sequence[Row]) -> "Table":
    """A table with a row per measurement, or its error."""
    head = ("artifact", "backend", "batch", "threads", "p50", "p90", "p99", "variation", "speed-up")
    return make_table(head, [_bench_cells(row) for row in rows])


def _bench_cells(row: Row) -> Cells:
    head = (row.artifact, row.backend, str(row.batch), str(row.threads or units.DASH))
    if not isinstance(row, TimedRow):
        return (*head, "not measured", *[units.DASH] * 4)
    variation = units.percent(100 * row.cov) + (" !" if row.warnings else "")
    times = map(units.milliseconds, (row.latency_p50_ms, row.p90, row.p99))
    return (*head, *times, variation, units.times(row.speedup_vs_fp32))


def layer_table(row: TimedRow, layers: Sequence[LayerTime]) -> "Table":
    """The layers of a row by time, then one line for each category of everything else."""
    head = (f"layers of {row.artifact} ({row.backend}), batch {row.batch}", "ms", "share")
    return make_table(head, [(name, f"{ms:.3f}", f"{share:.1%}") for name, ms, share in layer_lines(layers)])


def layer_lines(layers: Sequence[LayerTime], top: int = TOP) -> list[tuple[str, float, float]]:
    """(what, milliseconds, share) of the slowest layers, the other layers together, and each category."""
    own = sorted((one for one in layers if one.category == "layer"), key=lambda one: -one.ms)
    lines = [(" + ".join((one.layer or "", *one.fused)), one.ms, one.share) for one in own[:top]]
    if rest := own[top:]:
        lines.append((f"{len(rest)} more layers", *_sums(rest)))
    between: dict[str, list[LayerTime]] = {}
    for one in layers:
        if one.category != "layer":
            between.setdefault(one.category, []).append(one)
    return lines + sorted(((name, *_sums(parts)) for name, parts in between.items()), key=lambda line: -line[1])


def _sums(parts: Sequence[LayerTime]) -> tuple[float, float]:
    return sum(one.ms for one in parts), sum(one.share for one in parts)


def make_table(head: Sequence[str], rows: Sequence[Cells]) -> "Table":
    """A table with names left-aligned and numbers right-aligned; brackets are no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="left" if name in ("backend", "model") else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def print_table(table: "Table") -> None:
    """Print a table on stdout; at its natural width if stdout is no terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
