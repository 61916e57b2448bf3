"""What a search step costs: FP32, plain QAT and our searches, interleaved in one run.

    python benchmarks/search_step.py           both networks on the CPU, one thread
    python benchmarks/search_step.py --device cuda --compile --out step.json
    python benchmarks/search_step.py --models torchvision:resnet18 --image 224 --batch 16 --methods fp32 sbs

A step is zero_grad, forward, backward and the optimizer of the weights (SGD with momentum, the same for all); what a
search does beside the weights (gates, thresholds, clip limits) belongs to its step. Saved memory is what the graph
holds when the backward pass starts. docs/search_step.md keeps the numbers.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import publish, table
from step_measure import Method, Setting, interleaved, peak_bytes, saved_bytes, warm_up
from step_methods import fp32, in_loop, plain_qat, sbs, thresholds

from sbs_deploy.machine import clocks
from sbs_train.contract.console import keep_freed_memory

Row = dict[str, Any]

METHODS: dict[str, Callable[..., Method]] = {
    "fp32": fp32,
    "qat": plain_qat,
    "sbs": sbs,
    "loop": in_loop,
    "thresholds": thresholds,
}
GOALS = (
    ("SBS search step against plain QAT", "sbs", "time_vs_qat", 1.15),
    ("SBS search step against FP32", "sbs", "time_vs_fp32", 1.4),
    ("memory SBS saves for the backward pass against FP32", "sbs", "saved_vs_fp32", 1.2),
)
HEADER = (
    "method | bits W/A | step p50 ms | min ms | time / FP32 | time / plain QAT | saved MiB | saved / FP32 | peak MiB "
    "| peak / FP32"
)


def main(argv: list[str] | None = None) -> int:
    """Measure; write the numbers and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "mobilenetv2"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image", type=int, default=32, help="height and width in pixels")
    parser.add_argument(
        "--width", type=int, default=16, help="channels of the first layer, where a model has the choice"
    )
    parser.add_argument("--compile", action="store_true", help="add variants with torch.compile")
    parser.add_argument("--out", type=Path, default=Path("runs/search_step.json"), help="the page lies beside it, .md")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    found = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{clocks.cpu_model()}, {args.threads} thread(s)",
        "torch": torch.__version__,
        "rounds": args.rounds,
        "batch": args.batch,
        "image": args.image,
        "networks": [compared(args, model) for model in args.models],
    }
    publish(args.out, found, page(found))
    return 0


def compared(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """All rows of one network."""
    device = torch.device(args.device)
    setting = Setting(model=model, width=args.width, image=args.image, batch=args.batch, classes=10, device=device)
    methods: dict[str, Method] = {}
    rows: dict[str, Row] = {}
    chosen = {name: build for name, build in METHODS.items() if name in args.methods}
    if args.compile:
        chosen |= {f"{name} compiled": partial(METHODS[name], compiled=True) for name in list(chosen)}
    for name, build in chosen.items():
        methods[name] = one = build(setting)
        warm_up(one)
        rows[name] = {
            "name": f"{one.name}, compiled" if name.endswith(" compiled") else one.name,
            "bits": one.bits,
            "note": one.note,
            "saved_mib": saved_bytes(one) / 2**20,
            "peak_mib": peak_bytes(one, device) / 2**20,
        }
        print(f"{model}: {name} ready", file=sys.stderr, flush=True)
    seconds = interleaved(methods, device, args.rounds)
    for name, values in seconds.items():
        rows[name]["step_ms"] = [round(1e3 * value, 3) for value in values]
        for reference in {"fp32", "qat"} & set(seconds):
            rows[name][f"time_vs_{reference}"] = paired_ratio(values, seconds[reference])
        if "fp32" in methods:
            for key in ("saved", "peak"):
                rows[name][f"{key}_vs_fp32"] = rows[name][f"{key}_mib"] / rows["fp32"][f"{key}_mib"]
    return {"model": model, "width": setting.width, "rows": rows}


def paired_ratio(times: list[float], reference: list[float]) -> float:
    """Median over the rounds of the ratio inside a round: what slows the machine for a while slows both.

    >>> paired_ratio([2.0, 6.0, 4.0], [1.0, 3.0, 1.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def page(found: dict[str, Any]) -> list[str]:
    """Lines of Markdown: machine, tables, goals."""
    shape = f"batch {found['batch']}, {found['image']}x{found['image']} images, {found['rounds']} rounds"
    lines = [f"{found['date']} · {found['device']}, torch {found['torch']} · {shape}", ""]
    for network in found["networks"]:
        rows: dict[str, Row] = network["rows"]
        notes = [f"- {row['name']}: {row['note']}." for row in rows.values() if row.get("note")]
        lines += [f"## {network['model']}, width {network['width']}", "", *table(HEADER, map(cells, rows.values())), ""]
        lines += [*notes, "", *goals(rows), ""]
    return lines


def cells(row: Row) -> list[str]:
    """One line of the table."""

    def ratio(key: str) -> str:
        return f"{row[key]:.2f}x" if key in row else "–"

    times = [f"{statistics.median(row['step_ms']):.1f}", f"{min(row['step_ms']):.1f}"]
    saved, peak = (f"{row[key]:.1f}" for key in ("saved_mib", "peak_mib"))
    memory = [saved, ratio("saved_vs_fp32"), peak, ratio("peak_vs_fp32")]
    return [row["name"], row["bits"], *times, ratio("time_vs_fp32"), ratio("time_vs_qat"), *memory]


def goals(rows: dict[str, Row]) -> list[str]:
    """One line for each goal that these rows can answer."""
    return [
        f"- {text}: {value:.2f}x, the goal is at most {limit}x: {'met' if value <= limit else 'missed'}."
        for text, name, key, limit in GOALS
        if (value := rows.get(name, {}).get(key)) is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
