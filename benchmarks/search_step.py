"""What a search step costs: FP32, plain QAT, other tools, SBS and its rivals, interleaved in one run.

    python benchmarks/search_step.py           both networks on the CPU, one thread, to docs/search_step.md and .json
    python benchmarks/search_step.py --device cuda --compile --out step.json

A step is zero_grad, forward, backward and the optimizer of the weights (SGD with momentum, the same for all); what a
search does beside the weights (gates, thresholds, clip limits) belongs to its step. `--no-optimizer` leaves the
weights' optimizer out. Saved memory is what the graph holds when the backward pass starts. requirements-peers.txt says
how to have Brevitas and ModelOpt in the table.
"""

import argparse
import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_measure import Timing, interleaved, peak_bytes, saved_bytes, warm_up
from step_method import Method, Missing, Setting
from step_multipath import ALL_PAIRS, multi_path
from step_peers import brevitas, modelopt
from step_report import write_report
from step_sbs import fp32, naive, plain_qat, sbs, thresholds

from sbs_train.contract.console import keep_freed_memory

Row = dict[str, Any]
WIDTHS = {"resnet20": 16, "resnet56": 16, "mobilenetv2": 16}
"""Channels of the first layer; MobileNetV2 at half its width."""

METHODS: dict[str, Callable[[Setting], Method]] = {
    "fp32": fp32,
    "qat": plain_qat,
    "brevitas": brevitas,
    "modelopt": modelopt,
    "sbs": sbs,
    "thresholds": thresholds,
    "naive": naive,
    "multi-path": multi_path,
}
EXTRA: dict[str, Callable[[Setting], Method]] = {"multi-path-9": partial(multi_path, paths=ALL_PAIRS)}
"""Only where `--methods` names it: it takes as long as all the others."""
COMPILED: dict[str, Callable[[Setting], Method]] = {
    "fp32 compiled": partial(fp32, compiled=True),
    "qat compiled": partial(plain_qat, compiled=True),
    "sbs compiled": partial(sbs, compiled=True),
    "thresholds compiled": partial(thresholds, compiled=True),
    "multi-path compiled": partial(multi_path, compiled=True),
}


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "mobilenetv2"], choices=list(WIDTHS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *EXTRA])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--width", type=int, help="channels of the first layer")
    parser.add_argument("--compile", action="store_true", help="add variants with torch.compile")
    parser.add_argument("--no-optimizer", action="store_true", help="leave the weights' optimizer out")
    parser.add_argument("--system-malloc", action="store_true", help="let glibc hand freed memory back to the kernel")
    parser.add_argument("--out", type=Path, default=Path("docs/search_step.json"), help="the table lies beside it, .md")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.jit, by the peers
    kept = not args.system_malloc and keep_freed_memory()
    networks = [compared(args, model) for model in args.models]
    head = {
        "date": date.today().isoformat(),
        "device": device_name(args.device),
        "torch": torch.__version__,
        "threads": args.threads if args.device == "cpu" else None,
        "rounds": args.rounds,
        "batch": args.batch,
        "image": args.image,
        "optimizer": not args.no_optimizer,
        "freed_memory_kept": kept,
    }
    write_report(args.out, head, networks)
    return 0


def compared(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """All rows of one network."""
    setting = Setting(
        model=model,
        width=args.width or WIDTHS[model],
        image=args.image,
        batch=args.batch,
        classes=10,
        device=torch.device(args.device),
        optimizer=not args.no_optimizer,
    )
    methods: dict[str, Method] = {}
    rows: dict[str, Row] = {}
    chosen = {name: build for name, build in (METHODS | EXTRA).items() if name in args.methods}
    if args.compile:
        chosen |= {name: build for name, build in COMPILED.items() if name.removesuffix(" compiled") in args.methods}
    for name, build in chosen.items():
        try:
            methods[name] = build(setting)
        except Missing as reason:
            rows[name] = {"name": name, "missing": str(reason)}
            continue
        warm_up(methods[name])
        rows[name] = memory_row(methods[name], setting.device) | {"compiled": name in COMPILED}
        print(f"{model}: {name} ready", file=sys.stderr, flush=True)
    timings = interleaved(methods, setting.device, args.rounds)
    for name, timing in timings.items():
        rows[name] |= time_row(timing)
        for reference in {"fp32", "qat"} & set(timings):
            other = timings[reference]
            rows[name][f"time_vs_{reference}"] = paired_ratio(timing.seconds, other.seconds)
            rows[name][f"cpu_time_vs_{reference}"] = paired_ratio(timing.cpu_seconds, other.cpu_seconds)
        if "fp32" in methods:
            for key in ("saved", "peak"):
                rows[name][f"{key}_vs_fp32"] = rows[name][f"{key}_mib"] / rows["fp32"][f"{key}_mib"]
    return {"model": model, "width": setting.width, "rows": rows}


def memory_row(method: Method, device: torch.device) -> Row:
    """What is known of a method before it is timed; memory in MiB."""
    return {
        "name": method.name,
        "bits": method.bits,
        "note": method.note,
        "saved_mib": saved_bytes(method) / 2**20,
        "peak_mib": peak_bytes(method, device) / 2**20,
    }


def time_row(timing: Timing) -> Row:
    """Milliseconds and page faults a step."""
    ms = [1e3 * seconds for seconds in timing.seconds]
    return {
        "step_ms_p50": statistics.median(ms),
        "step_ms_min": min(ms),
        "cpu_ms_p50": 1e3 * statistics.median(timing.cpu_seconds),
        "page_faults": statistics.median(timing.page_faults),
        "step_ms": [round(value, 3) for value in ms],
    }


def paired_ratio(times: list[float], reference: list[float]) -> float:
    """Median over the rounds of the ratio inside a round: what slows the machine for a while slows both.

    >>> paired_ratio([2.0, 6.0, 4.0], [1.0, 3.0, 1.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def device_name(device: str) -> str:
    """The GPU's or the CPU's model name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
