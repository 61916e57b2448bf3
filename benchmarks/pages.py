"""Markdown pages of numbers, as the benchmarks write them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sbs_train.contract.rundir import write_json, write_text


def table(header: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the names of the columns stand in `header`, with `|` between them.

    >>> table("a | b", [("1", "2")])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    columns = header.split(" | ")
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return [lines[0], f"|{'---|' * len(columns)}", *lines[1:]]


def publish(out: Path, found: Any, lines: Iterable[str]) -> None:
    """Write the raw numbers to `out` as JSON and the page beside it as .md, and print the page.

    `docs/` holds no raw numbers: copy the tables there when they are to stay.
    """
    text = "\n".join([*lines, ""])
    write_json(out, found)
    write_text(out.with_suffix(".md"), text)
    print(text)
