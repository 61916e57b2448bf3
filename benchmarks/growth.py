"""How cost grows with the network: a search step against MACs, the export against layers.

    python benchmarks/growth.py            both, on one thread: about 20 minutes, to docs/growth.json and docs/scale.md
    python benchmarks/growth.py --report   only the tables, from docs/growth.json

Search steps are measured as search_step.py does it, FP32 and SBS in turns in one process. The export is the command a
user runs, in a process of its own, on a run without training: its time and its largest resident memory.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from search_step import device_name, memory_row, paired_ratio, time_row
from step_measure import interleaved, warm_up
from step_method import Setting
from step_sbs import fp32, layer_macs, sbs

from sbs_train.contract.console import keep_freed_memory
from sbs_train.contract.rundir import read_json, write_json, write_text

STEP_MODELS = ("shufflenet_v2_x0_5", "mobilenet_v2", "resnet18", "resnet50", "resnet152")
"""Of torchvision; a factor of 280 in MACs."""
EXPORT_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BATCH = 16
IMAGE = 224
EXPORT_IMAGE = 64
"""The graph, and so the export, is the same for images of any size; calibration is not."""
BEGIN, END = "<!-- benchmarks/growth.py writes this -->", "<!-- end -->"
PAGE = Path("docs/scale.md")

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, or only report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--parts", nargs="+", default=["steps", "exports"], choices=["steps", "exports"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/growth.json"))
    args = parser.parse_args(argv)
    if not args.report:
        torch.set_num_threads(1)
        keep_freed_memory()
        found = read_json(args.out) if args.out.is_file() else {}
        found |= {"date": date.today().isoformat(), "device": device_name("cpu"), "torch": torch.__version__}
        if "exports" in args.parts:
            found["exports"] = [export(name) for name in EXPORT_MODELS]
        if "steps" in args.parts:
            found |= {"batch": BATCH, "image": IMAGE, "rounds": args.rounds}
            found["steps"] = [search_step(name, args.rounds) for name in STEP_MODELS]
        write_json(args.out, found)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = tables(read_json(args.out))
    write_text(PAGE, f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)
    return 0


def search_step(name: str, rounds: int) -> Row:
    """FP32 and SBS on one network of torchvision."""
    setting = Setting(
        model=f"torchvision:{name}",
        width=16,
        image=IMAGE,
        batch=BATCH,
        classes=1000,
        device=torch.device("cpu"),
        optimizer=True,
    )
    macs = layer_macs(setting)
    methods = {"fp32": fp32(setting), "sbs": sbs(setting)}
    row: Row = {"model": name, "gmacs": sum(macs.values()) / 1e9, "layers": len(macs)}
    for key, method in methods.items():
        warm_up(method)
        row[key] = memory_row(method, setting.device)
    timings = interleaved(methods, setting.device, rounds)
    for key, timing in timings.items():
        row[key] |= time_row(timing)
    row["time_vs_fp32"] = paired_ratio(timings["sbs"].seconds, timings["fp32"].seconds)
    print(f"{name}: {row['time_vs_fp32']:.2f}x", file=sys.stderr, flush=True)
    return row


def export(name: str) -> Row:
    """`sbs-deploy export` of an 8-bit plan of one network of torchvision: seconds, by step, and MiB."""
    bin_dir = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        images, run = Path(folder) / "images", Path(folder) / "run"
        write_noise(images)
        train = [bin_dir / "sbs-train", "--model", f"torchvision:{name}", "--data", f"folder:{images}", "--out", run]
        size = ["--image-size", EXPORT_IMAGE, "--batch-size", 8, "--workers", 0, "--device", "cpu"]
        stages = [x for stage in ("pretrain", "search", "finetune") for x in (f"--{stage}.epochs", 0)]
        subprocess.run([*map(str, [*train, *size, *stages, "--target", "1x"])], check=True, capture_output=True)
        command = [str(bin_dir / "sbs-deploy"), "export", str(run)]
        start = last = time.perf_counter()
        parts: dict[str, float] = {}
        part = "start"
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            peak = PeakMemory(process.pid)
            peak.start()
            for line in process.stderr:
                if step := re.match(r"export: (.*)", line):
                    now = time.perf_counter()
                    parts[part], part, last = now - last, step[1], now
        end = time.perf_counter()
        peak.join()
        parts[part] = end - last
        if process.returncode:
            raise RuntimeError(f"export of {name} failed")
        layers = len(json.loads((run / "plan.json").read_text())["layers"])
    print(f"{name}: export {end - start:.0f} s", file=sys.stderr, flush=True)
    return {
        "model": name,
        "layers": layers,
        "seconds": end - start,
        "parts": parts,
        "peak_rss_mib": peak.kib / 1024,
    }


class PeakMemory(threading.Thread):
    """Largest resident memory of a process, looked at until it ends.

    Not `ru_maxrss`, which starts from what the parent had.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{pid}/status")
        self.kib = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while found := re.search(r"VmHWM:\s+(\d+)", self.status.read_text()):
                self.kib = int(found[1])
                time.sleep(0.02)


def write_noise(directory: Path) -> None:
    """An image folder of two classes: nothing here depends on what the images show."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            for index in range(8):
                path = directory / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)).save(path)


def tables(found: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = [
        f"{found['date']}, {found['device']}, 1 thread, torch {found['torch']}, torchvision's networks.",
        "",
        f"A training step, batch {found['batch']}, {found['image']}x{found['image']} images, {found['rounds']} rounds "
        "of FP32 and SBS in turns. Saved: what the graph holds for the backward pass.",
        "",
        "| network | GMACs an image | layers | FP32 step | search step | search / FP32 | ms per GMAC, FP32 | search "
        "| saved, FP32 | search | peak, FP32 | search |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["steps"]:
        a, b = row["fp32"], row["sbs"]
        total = row["gmacs"] * found["batch"]
        lines.append(
            f"| {row['model']} | {row['gmacs']:.2f} | {row['layers']} | {a['step_ms_p50'] / 1e3:.2f} s "
            f"| {b['step_ms_p50'] / 1e3:.2f} s | {row['time_vs_fp32']:.2f}x | {a['step_ms_p50'] / total:.0f} "
            f"| {b['step_ms_p50'] / total:.0f} | {a['saved_mib']:.0f} MiB | {b['saved_mib']:.0f} MiB "
            f"| {a['peak_mib']:.0f} MiB | {b['peak_mib']:.0f} MiB |"
        )
    names = [name for name in found["exports"][0]["parts"] if name != "start"]
    lines += [
        "",
        "`sbs-deploy export` of an 8-bit plan, all of it in one process, with its largest resident memory:",
        "",
        f"| network | layers | seconds | seconds a layer | {' | '.join(names)} | memory |",
        "|---|---|---|---|" + "---|" * (len(names) + 1),
    ]
    for row in found["exports"]:
        parts = " | ".join(f"{row['parts'][name]:.1f}" for name in names)
        lines.append(
            f"| {row['model']} | {row['layers']} | {row['seconds']:.1f} | {row['seconds'] / row['layers']:.2f} "
            f"| {parts} | {row['peak_rss_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
