"""The table of search_step.py, and what its numbers say of the goals."""

from pathlib import Path
from typing import Any

from sbs_train.contract.rundir import write_json, write_text

Row = dict[str, Any]

GOALS = (
    ("SBS search step against plain QAT", "sbs", "time_vs_qat", 1.15),
    ("SBS search step against FP32", "sbs", "time_vs_fp32", 1.4),
    ("memory SBS saves for the backward pass against FP32", "sbs", "saved_vs_fp32", 1.2),
)
CHEAPER_THAN_PATHS = 3.0
HEADER = (
    "method",
    "bits W/A",
    "step p50 ms",
    "min ms",
    "time / FP32",
    "time / plain QAT",
    "saved MiB",
    "saved / FP32",
    "peak MiB",
    "peak / FP32",
)


def write_report(out: Path, head: dict[str, Any], networks: list[dict[str, Any]]) -> None:
    """`out` as JSON and the same name with .md as a table; the table is printed as well."""
    text = markdown(head, networks)
    write_json(out, {**head, "networks": networks})
    write_text(out.with_suffix(".md"), text)
    print(text)


def markdown(head: dict[str, Any], networks: list[dict[str, Any]]) -> str:
    """The whole page."""
    threads = f", {head['threads']} thread{'s' if head['threads'] != 1 else ''}" if head["threads"] else ""
    machine = f"{head['device']}{threads}, torch {head['torch']}"
    optimizer = "the SGD step of the weights" if head["optimizer"] else "no optimizer of the weights"
    shape = f"batch {head['batch']}, {head['image']}x{head['image']} images, {head['rounds']} rounds"
    lines = ["# What a search step costs", "", f"{head['date']} · {machine} · {shape}", ""]
    lines += [
        "Regenerate with `python benchmarks/search_step.py`. A step is zero_grad, forward, backward and "
        f"{optimizer}; what a search does beside the weights (gates, thresholds, clip limits) belongs to its "
        "step. All methods take turns in random order in one process, in the same memory layout; a time is the mean of "
        "an even and an odd step, a ratio the median over the rounds of the ratio inside a round. Saved memory: "
        "distinct storages that the graph holds when the backward pass starts, without parameters and buffers. Peak "
        "memory: the most that tensors took during a step beyond what they took before it. Residual additions stay in "
        "float in every row.",
        "",
    ]
    if head["freed_memory_kept"]:
        lines += [
            "Freed memory was kept by the allocator (glibc's mallopt), so page faults do not colour the times.",
            "",
        ]
    for network in networks:
        lines += section(network)
    return "\n".join(lines)


def section(network: dict[str, Any]) -> list[str]:
    """Table, notes and goals of one network."""
    rows: dict[str, Row] = network["rows"]
    lines = [f"## {network['model']}, width {network['width']}", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += [table_row(row) for row in rows.values()]
    notes = [f"- {title(row)}: {row['note']}." for row in rows.values() if row.get("note")]
    return [*lines, "", *notes, "", *goals(rows), ""]


def table_row(row: Row) -> str:
    """One line; a method that did not run says why instead of giving numbers."""
    if "missing" in row:
        return f"| {row['name']} | {row['missing']}" + " |" * (len(HEADER) - 1)
    cells = [title(row), row["bits"], f"{row['step_ms_p50']:.1f}", f"{row['step_ms_min']:.1f}"]
    cells += [ratio(row, "time_vs_fp32"), ratio(row, "time_vs_qat")]
    cells += [f"{row['saved_mib']:.1f}", ratio(row, "saved_vs_fp32")]
    cells += [f"{row['peak_mib']:.1f}", ratio(row, "peak_vs_fp32")]
    return "| " + " | ".join(cells) + " |"


def goals(rows: dict[str, Row]) -> list[str]:
    """One line a goal that these rows can answer."""
    lines = []
    for text, name, key, limit in GOALS:
        value = rows.get(name, {}).get(key)
        if value is not None:
            lines.append(f"- {text}: {value:.2f}x, the goal is at most {limit}x: {verdict(value <= limit)}.")
    ours, paths = (rows.get(name, {}).get("time_vs_fp32") for name in ("sbs", "multi-path"))
    if ours and paths:
        cheaper = paths / ours
        met = verdict(cheaper >= CHEAPER_THAN_PATHS)
        lines.append(f"- multi-path step against SBS step: {cheaper:.2f}x, the goal is at least 3x: {met}.")
    return lines


def verdict(met: bool) -> str:
    """A word for a goal."""
    return "met" if met else "missed"


def title(row: Row) -> str:
    """A row's name."""
    return f"{row['name']}, compiled" if row.get("compiled") else str(row["name"])


def ratio(row: Row, key: str) -> str:
    """A ratio, or a dash where its reference did not run."""
    return f"{row[key]:.2f}x" if key in row else "–"
