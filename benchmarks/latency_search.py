"""A search that pays in milliseconds against one that pays in BOPs, at equal latency: which network is more accurate?

    python benchmarks/latency_search.py --cost device.json        ResNet-20, Fashion-MNIST, three seeds, three budgets
    python benchmarks/latency_search.py --report                  only the page, from docs/latency_search.json

`device.json` is of this machine: `sbs-deploy profile-device --backend onnxruntime --models resnet20 --input 1,28,28
--classes 10 --width 16 --out device.json`. For every budget and seed a search finds a plan in BOPs; a second one, from
the same float weights and with as many steps, is given the milliseconds that the device model expects of that plan. At
2 bits a device is no faster, so budgets in BOPs may buy nothing. "at 8 bits" is a control: there the search in BOPs can
only prune, in multiples of what the device charges for, as somebody would who knows the device.
Both are exported and measured in turns under ONNX Runtime (one thread, batch 1). Every finished pair is one JSON file,
so an interrupted benchmark goes on.
"""

import argparse
import dataclasses
import sys
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from sbs_deploy.export.pipeline import export_run
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices.predict import network_in, predicted_ms
from sbs_deploy.measure.protocol import Protocol, measure, speedup
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.device import load_device
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.results import Machines
from sbs_train.contract.rundir import RunDir, read_json, write_json, write_text
from sbs_train.stages.run import train

AT_8_BITS = " at 8 bits"
BUDGETS = ("40x", "300x", f"20x{AT_8_BITS}")
EPOCH = 50
SEARCH, FINETUNE = 3, 17
"""Epochs of EPOCH steps: as in pareto.py."""

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the page; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", type=Path, default=Path("device.json"))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    parser.add_argument("--weights", help="float weights of every seed, such as runs/s{seed}/fp32.safetensors")
    parser.add_argument("--work", type=Path, default=Path("runs/latency_search"))
    parser.add_argument("--out", type=Path, default=Path("docs/latency_search.json"))
    args = parser.parse_args(argv)
    if not args.report:
        torch.set_num_threads(1)
        before = clocks.machine_state()
        rows = [pair(args, budget, seed) for seed in args.seeds for budget in args.budgets]
        device = load_device(args.cost)
        found = {
            "date": date.today().isoformat(),
            "machine": Machines(before=before, after=clocks.machine_state()).model_dump(mode="json"),
            "device": {"target": device.target, "device": device.device, "align": device.align},
            "width": args.width,
            "rows": rows,
        }
        write_json(args.out, found)
    found = read_json(args.out)
    text = page(found)
    write_text(args.out.with_suffix(".md"), text)
    print(text)
    return 0 if min(gains([row for row in found["rows"] if AT_8_BITS not in row["budget"]])) >= 0 else 1


def pair(args: argparse.Namespace, budget: str, seed: int) -> Row:
    """Both searches at one budget from one seed's weights, measured in turns."""
    result = args.work / f"s{seed}-{budget}.json"
    if result.is_file():
        return dict(read_json(result))
    weights = Path(args.weights.format(seed=seed)) if args.weights else None
    config = TrainConfig(
        model="resnet20",
        data="fashion-mnist",
        width=args.width,
        seed=seed,
        target=budget.removesuffix(AT_8_BITS),
        weights=weights,
        device="cpu",
        pretrain=PretrainConfig(epochs=0 if weights else args.pretrain_epochs, steps_per_epoch=EPOCH),
        search=SearchConfig(epochs=SEARCH, steps_per_epoch=EPOCH),
        finetune=FinetuneConfig(epochs=FINETUNE, steps_per_epoch=EPOCH),
    )
    only_prunes = pruning_only(config.search, load_device(args.cost).align)
    folder = str(args.work / f"s{seed}-{budget}".replace(" ", "-"))
    by_bops = train(
        dataclasses.replace(config, search=only_prunes if budget.endswith(AT_8_BITS) else config.search),
        Path(f"{folder}-bops"),
    )
    expected = expected_ms(args.cost, by_bops.plan)
    in_ms = dataclasses.replace(
        config,
        cost=args.cost,
        target=f"{expected:.6f}ms",
        weights=weights or by_bops.run.checkpoints / "fp32.safetensors",
        pretrain=dataclasses.replace(config.pretrain, epochs=0),
    )
    by_ms = train(in_ms, Path(f"{folder}-ms"))
    runs = {"bops": by_bops.run, "ms": by_ms.run}
    times = measured(runs)
    row: Row = {"seed": seed, "budget": budget, "fp32_top1": by_bops.metrics["fp32"]["top1"]}
    for name, run in runs.items():
        row[name] = {**described(load_plan(run.plan)), "top1": read_json(run.metrics)["finetune"]["top1"]}
        row[name]["expected_ms"] = expected_ms(args.cost, load_plan(run.plan))
        row[name]["measured_ms"] = times[name].latency().p50_ms
    row["speedup_of_ms_over_bops"] = list(speedup(times["bops"], times["ms"]))
    write_json(result, row)
    print(
        f"seed {seed} {budget}: {row['bops']['top1']:.2f} % by BOPs, {row['ms']['top1']:.2f} % by ms", file=sys.stderr
    )
    return row


def pruning_only(search: SearchConfig, align: int) -> SearchConfig:
    """A search that leaves all layers at 8 bits, and channels in multiples of `align`."""
    return dataclasses.replace(search, bits_weights=(8,), bits_activations=(8,), group_size=align, align=align)


def expected_ms(cost: Path, plan: Plan) -> float:
    """What the device model says of a plan."""
    device = load_device(cost)
    return predicted_ms(device, network_in(device, plan), plan)


def measured(runs: dict[str, RunDir]) -> dict[str, Any]:
    """Latency of the integer models of several runs, interleaved."""
    with ExitStack() as stack:
        contestants = {}
        for name, run in runs.items():
            export_run(run, progress=lambda line: None)
            engine = stack.enter_context(OnnxRuntimeEngine(run.model_ort, precision="int8"))
            with np.load(run.golden) as golden:
                image = golden["inputs"][:1].astype(np.float32)
            contestants[name] = partial(engine.latency_ms, image)
        return measure(contestants, Protocol(rounds=40))


def described(plan: Plan) -> Row:
    """What a plan spends."""
    macs = sum(layer.macs for layer in plan.layers)
    return {
        "reduction": plan.cost.reduction,
        "mean_bits_w": sum(layer.bits_w * layer.macs for layer in plan.layers) / macs,
        "mean_bits_a": sum(layer.bits_a * layer.macs for layer in plan.layers) / macs,
        "kept_channels": sum(len(group.kept) for group in plan.groups) / sum(group.size for group in plan.groups),
    }


def gains(rows: list[Row]) -> list[float]:
    """Accuracy of the search by milliseconds over the one by BOPs, in points, mean over the seeds, by budget."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    return [
        float(np.mean([row["ms"]["top1"] - row["bops"]["top1"] for row in rows if row["budget"] == budget]))
        for budget in budgets
    ]


def page(found: Row) -> str:
    """The Markdown page."""
    machine, device = found["machine"]["before"], found["device"]
    lines = [
        "# Paying in milliseconds or in BOPs",
        "",
        f"{found['date']} · {machine['cpu']} ({' '.join(machine['vector_flags'])}) · {device['target']}",
        "",
        f"Regenerate with `python benchmarks/latency_search.py --cost device.json`. ResNet-20, width {found['width']}, "
        f"Fashion-MNIST, {SEARCH * EPOCH} steps of search and {FINETUNE * EPOCH} of fine-tuning from the same float "
        "weights. The search by milliseconds is given what the device model expects of the plan found by BOPs. Where "
        f"it says{AT_8_BITS}, a control, the search by BOPs leaves all layers at 8 bits and prunes, in multiples of "
        f"{found['device']['align']} channels; the one by milliseconds does as it likes. ONNX Runtime, one thread, "
        "batch 1, both plans in turns.",
        "",
        "| budget | seed | by | top-1 % | measured ms | expected ms | BOPs reduction | bits w / a | channels kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        for name, words in (("bops", "BOPs"), ("ms", "ms")):
            one = row[name]
            lines.append(
                f"| {row['budget']} | {row['seed']} | {words} | {one['top1']:.2f} | {one['measured_ms']:.3f} "
                f"| {one['expected_ms']:.3f} | {one['reduction']:.1f}x "
                f"| {one['mean_bits_w']:.1f} / {one['mean_bits_a']:.1f} | {one['kept_channels']:.0%} |"
            )
    lines.append("")
    for budget in dict.fromkeys(row["budget"] for row in found["rows"]):
        own = [row for row in found["rows"] if row["budget"] == budget]
        points = [row["ms"]["top1"] - row["bops"]["top1"] for row in own]
        ratio = np.median([row["speedup_of_ms_over_bops"][0] for row in own])
        each = ", ".join(f"{point:+.2f}" for point in points)
        lines.append(f"- {budget}: by ms {np.mean(points):+.2f} points ({each}) at {ratio:.2f}x the measured speed.")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
