"""Table of layer times for people: the slowest layers, then the categories between layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_train.contract.results import LayerTime, TimedRow

if TYPE_CHECKING:
    from rich.table import Table

TOP = 10
"""Number of layers with a row of their own."""


def layer_table(row: TimedRow, layers: Sequence[LayerTime], top: int = TOP) -> "Table":
    """A table of a row's layers by time, then of the categories of other nodes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"layers of {row.artifact} ({row.backend}), batch {row.batch}", overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, ms, share in layer_lines(layers, top):
        table.add_row(Text(name), f"{ms:.3f}", f"{share:.1%}")
    return table


def layer_lines(layers: Sequence[LayerTime], top: int = TOP) -> list[tuple[str, float, float]]:
    """(name, milliseconds, share) of the slowest layers, of all other layers together, and of each category."""
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
