"""What a sweep came to, for people."""

from rich.markup import escape
from rich.table import Table

from sbs_train.contract.sweep import SweepResult
from sbs_train.tables import si


def sweep_table(result: SweepResult) -> Table:
    """A row for every target, the front and its knee marked; below, why targets failed."""
    in_ms = result.unit == "ms"
    failed = [f"{row.target}: {row.error}" for row in result.runs if row.error is not None]
    caption = [f"all from one float network with {result.top1_fp32:.2f} % top-1", *failed]
    table = Table(title="sweep", caption=escape("\n".join(caption)), caption_justify="left")
    table.add_column("target")
    for column in ("speed-up" if in_ms else "reduction", "top-1 %", "BOPs", *(["expected ms"] if in_ms else [])):
        table.add_column(column, justify="right")
    table.add_column("front")
    for row in result.runs:
        if row.top1 is None or row.bops is None or row.reduction is None:
            table.add_row(escape(row.target), *["–"] * (4 if in_ms else 3), "failed")
            continue
        cells = [f"{row.reduction:.4g}x", f"{row.top1:.2f}", si(row.bops)]
        cells += [f"{row.expected_ms:.3g}"] if row.expected_ms is not None else []
        front = "knee" if row.knee else "on it" if row.on_front else "no better"
        table.add_row(escape(row.target), *cells, front + ("" if row.reached else ", target not reached"))
    return table
