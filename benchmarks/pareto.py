"""SBS against uniform bitwidths at equal training, on Fashion-MNIST with ResNet-20.

Every method starts from the same float weights and takes the same number of steps in all: a uniform plan fine-tunes
for all of them, SBS searches first. The validation split chooses, the test set reports. Every finished run is one JSON
file, so an interrupted benchmark goes on where it stopped.

    python benchmarks/pareto.py --widths 8 16 --seeds 0 1 2      runs, then writes docs/pareto.json, .md and .svg
"""

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from sbs_train.contract.config import CalibrateConfig, FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import create_run, write_json, write_text
from sbs_train.inputs.data import Split, load_dataset
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, open_context
from sbs_train.stages.finetune import train_frozen
from sbs_train.stages.freeze import freeze
from sbs_train.stages.loop import evaluate, reestimate_batchnorm
from sbs_train.stages.plans import Network, build_network, fastest_layout
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.search import search

Row = dict[str, Any]

EPOCH = 100
UNIFORM = {"W8A8": (8, 8), "W4A4": (4, 4), "W2A4": (2, 4), "W2A2": (2, 2)}
TARGETS = ("66x", "100x", "125x", "240x")
VALIDATION_IMAGES = 2000
"""A part of the validation split: on two cores the whole of it would cost more than the training."""


def main() -> int:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["FP32", *UNIFORM, *(f"SBS {t}" for t in TARGETS)])
    parser.add_argument("--pretrain-steps", type=int, default=1500)
    parser.add_argument("--search-steps", type=int, default=400)
    parser.add_argument("--finetune-steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/pareto"))
    parser.add_argument("--report", action="store_true", help="only write docs/pareto.* from what is there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in args.seeds if not args.report else ():
        for width in args.widths:
            for method in args.methods:
                run_once(args, width, seed, method)
    write_report(args)
    return 0


def run_once(args: argparse.Namespace, width: int, seed: int, method: str) -> None:
    """Train one point, unless its result is there."""
    name = f"w{width}-s{seed}-{method.replace(' ', '-').lower()}"
    result = args.work / f"{name}.json"
    if result.is_file():
        return
    start = time.monotonic()
    ctx, network, fp32 = prepared(args, width, seed, name, method)
    if method == "FP32":
        reduction = 1.0
        train_frozen(ctx, network, settings="pareto")
    else:
        calibration = calibrate(ctx, network, fp32)
        if method in UNIFORM:
            plan = uniform(network, *UNIFORM[method])
            reestimate_batchnorm(ctx, network.model)
        else:
            plan = search(ctx, network, calibration).plan
        reduction = plan.cost.reduction
        train_frozen(ctx, network, settings="pareto")
    point = {
        "width": width,
        "seed": seed,
        "method": method,
        "reduction": reduction,
        "steps": [args.pretrain_steps, args.search_steps + args.finetune_steps],
        **evaluate(ctx.data, network.model, ctx.data.test),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(result, point)
    print(f"{name}: {point['top1']:.2f} % at {reduction:.1f}x in {point['seconds']:.0f} s", file=sys.stderr, flush=True)


def prepared(args: argparse.Namespace, width: int, seed: int, name: str, method: str) -> tuple[Context, Network, str]:
    """A context whose fine-tuning takes all steps the method has left, and the pretrained network."""
    base = TrainConfig(
        data="fashion-mnist",
        width=width,
        seed=seed,
        pretrain=PretrainConfig(epochs=args.pretrain_steps // EPOCH, steps_per_epoch=EPOCH),
        calibrate=CalibrateConfig(),
    )
    pretrained = opened(base, args.work / f"w{width}-s{seed}-pretrained")
    network = build_network(base, pretrained.model_spec, pretrained.data.input)
    pretrain(pretrained, network)
    searches = method.startswith("SBS")
    left = args.finetune_steps + (0 if searches else args.search_steps)
    config = dataclasses.replace(
        base,
        weights=pretrained.run.checkpoints / "fp32.safetensors",
        target=method.split()[1] if searches else "60x",
        # The paper quantizes convolutions and linear layers alone.
        search=SearchConfig(epochs=args.search_steps // EPOCH, steps_per_epoch=EPOCH, quantize_residual=False),
        finetune=FinetuneConfig(epochs=left // EPOCH, steps_per_epoch=EPOCH),
    )
    ctx = opened(config, args.work / name)
    network = build_network(config, ctx.model_spec, ctx.data.input)
    network.model.to(memory_format=fastest_layout(network, ctx.fabric.device))
    return ctx, network, pretrain(ctx, network)


def opened(config: TrainConfig, path: Path) -> Context:
    """A context on part of the validation split."""
    ctx = open_context(create_run(path), config, load_dataset("fashion-mnist"))
    val = ctx.data.val
    part = Split(images=val.images[:VALIDATION_IMAGES], labels=val.labels[:VALIDATION_IMAGES])
    ctx.data = dataclasses.replace(ctx.data, val=part)
    return ctx


def uniform(network: Network, bits_w: int, bits_a: int) -> Plan:
    """The plan with the same bits everywhere but in the first and the last layer."""
    names = [name for name in network.layers if name not in network.topology.fixed]
    return freeze(network, dict.fromkeys(names, bits_w), dict.fromkeys(names, bits_a))


def write_report(args: argparse.Namespace) -> None:
    """docs/pareto.json, docs/pareto.md and docs/pareto.svg from every result in the work directory."""
    points = [json.loads(path.read_text()) for path in sorted(args.work.glob("w*-s*-*.json"))]
    points = [p for p in points if "method" in p]
    if not points:
        return
    order = ["FP32", *UNIFORM, *(f"SBS {t}" for t in TARGETS)]
    rows = []
    for width in sorted({p["width"] for p in points}):
        for method in order:
            group = [p for p in points if p["width"] == width and p["method"] == method]
            if group:
                rows.append(summary(width, method, group))
    machine = f"{cpu_name()}, {args.threads} thread a run, torch {torch.__version__}"
    head = f"{date.today().isoformat()} · {machine} · batch 128 · Fashion-MNIST test set, 10,000 images"
    write_json(Path("docs/pareto.json"), {"head": head, "points": points})
    lines = ["# Pareto: SBS against uniform bitwidths, ResNet-20 on Fashion-MNIST", "", head, ""]
    lines += ["Regenerate with `python benchmarks/pareto.py`. Spread is max - min over the seeds.", ""]
    for width in sorted({p["width"] for p in points}):
        steps = next(p["steps"] for p in points if p["width"] == width)
        lines += [f"Width {width}: {steps[0]} steps of pretraining, then {steps[1]} for every method.", ""]
    lines += ["| width | method | reduction | top-1 % (mean) | spread | seeds |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['width']} | {r['method']} | {r['reduction']:.1f}x | {r['mean']:.2f} | {spread_of(r)} | {r['seeds']} |"
        for r in rows
    ]
    write_text(Path("docs/pareto.md"), "\n".join([*lines, "", "![Pareto plot](pareto.svg)", ""]))
    write_text(Path("docs/pareto.svg"), plot(rows))


def summary(width: int, method: str, group: list[Row]) -> Row:
    """Mean and spread over seeds."""
    top1 = [p["top1"] for p in group]
    return {
        "width": width,
        "method": method,
        "reduction": statistics.mean(p["reduction"] for p in group),
        "mean": statistics.mean(top1),
        "spread": max(top1) - min(top1),
        "low": min(top1),
        "high": max(top1),
        "seeds": len(group),
    }


def spread_of(row: Row) -> str:
    """One seed has none."""
    return f"{row['spread']:.2f}" if row["seeds"] > 1 else "not measured"


def plot(rows: list[Row]) -> str:
    """An SVG with one panel a width: top-1 against the reduction, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import io

    import matplotlib.pyplot as plt

    widths = sorted({r["width"] for r in rows})
    figure, axes = plt.subplots(1, len(widths), figsize=(5.5 * len(widths), 4), squeeze=False)
    for axis, width in zip(axes[0], widths, strict=True):
        for label, chosen, marker in (
            ("uniform", [r for r in rows if r["method"] in UNIFORM], "s--"),
            ("SBS", [r for r in rows if r["method"].startswith("SBS")], "o-"),
        ):
            part = sorted((r for r in chosen if r["width"] == width), key=lambda r: r["reduction"])
            x, y = [r["reduction"] for r in part], [r["mean"] for r in part]
            error = [[r["mean"] - r["low"] for r in part], [r["high"] - r["mean"] for r in part]]
            axis.errorbar(x, y, yerr=error, fmt=marker, capsize=3, label=label)
        for row in rows:
            if row["width"] == width and row["method"] == "FP32":
                axis.axhline(row["mean"], color="grey", linewidth=0.8, label="FP32")
        axis.set(xscale="log", xlabel="reduction of BOPs", ylabel="top-1 %", title=f"ResNet-20, width {width}")
        axis.set_xticks([16, 32, 64, 128, 256], ["16x", "32x", "64x", "128x", "256x"])
        axis.legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def cpu_name() -> str:
    """The CPU's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
