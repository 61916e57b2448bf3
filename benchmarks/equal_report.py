"""The page of `equal_latency.py`."""

import statistics
from pathlib import Path
from typing import Any

import cpu_networks
from equal_methods import METHODS, OURS
from pages import table


def page(cells: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: a table for each network, engine and budget, and how far ours is from each method."""
    lines = [cpu_networks.machine(), ""]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        where = (Path(cell["out"]).name, cell["model"], cell["backend"], cell["batch"], cell["budget"])
        groups.setdefault(where, []).append(cell)
    for (_, model, backend, batch, budget), found in groups.items():
        first = found[0]
        lines += [f"## {model}, {backend}, batch {batch}, {budget:g} of dense INT8's time", ""]
        lines += [
            f"{first['pretrain_steps']} steps of pretraining, {first['steps']} behind it, batches of "
            f"{first['batch_size']}.",
            "",
        ]
        ours = {cell["seed"]: cell["top1"] for cell in found if cell["method"] == OURS}
        rows = []
        for method in METHODS:
            mine = [cell for cell in found if cell["method"] == method]
            if mine:
                apart = [ours[cell["seed"]] - cell["top1"] for cell in mine if cell["seed"] in ours]
                each = ", ".join(f"{cell['top1']:.2f}" for cell in mine)
                times = ", ".join(f"{cell['time']:.3f}" for cell in mine)
                top1 = statistics.fmean(cell["top1"] for cell in mine)
                rows.append([method, f"{top1:.2f}", each, times, "" if method == OURS else _spread(apart)])
        lines += [*table("method | top-1 % | by seed | time over dense INT8 | ours is above it by", rows), ""]
    return lines


def _spread(apart: list[float]) -> str:
    """Mean of differences with their standard deviation, where there are several."""
    if not apart:
        return "–"
    deviation = f" ± {statistics.stdev(apart):.2f}" if len(apart) > 1 else ""
    return f"{statistics.fmean(apart):+.2f}{deviation}"
