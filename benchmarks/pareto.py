"""SBS against its controls at equal training: uniform and random plans, SBS-P, SBS-Q, learned thresholds, FP32.

Every method starts from the same float weights and takes the same number of steps in all: a given plan trains for all
of them, a search spends a part of them. The validation split chooses, the test set reports. Every finished run is one
JSON file, so an interrupted benchmark goes on where it stopped.

    python benchmarks/pareto.py                             ResNet-20 of width 4, 8 and 16, MobileNetV2 0.5x; 3 seeds
    python benchmarks/pareto.py --quick                     width 4, one seed, few steps: about ten minutes on two cores
    python benchmarks/pareto.py --device cuda --processes 13   on a GPU, under CUDA MPS (nvidia-cuda-mps-control -d)
    python benchmarks/pareto.py --cost device.json --nets resnet20:16 --methods W8A8 "SBS 40x" "SBS 0.5ms"

With `--cost` (a file of `sbs-deploy profile-device` for each of the nets) targets may be milliseconds, and every plan
says how many the device model expects of it: which method is more accurate at equal latency? docs/results.md keeps the
numbers.
"""

import argparse
import dataclasses
import math
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from pareto_report import write_report

from sbs_deploy.machine import clocks
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig, to_dict
from sbs_train.contract.console import keep_freed_memory
from sbs_train.contract.device import load_device
from sbs_train.contract.latency import network_in, predicted_ms
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import create_run, read_json, write_json
from sbs_train.inputs.data import load_dataset
from sbs_train.inputs.data.memory import MemoryDataset
from sbs_train.network.network import Network, fastest_layout
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, Stage, open_context
from sbs_train.stages.finetune import train_frozen
from sbs_train.stages.loop import evaluate, reestimate_batchnorm
from sbs_train.stages.named import model_for, network_of
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.rule import freeze
from sbs_train.stages.runner import output_hash
from sbs_train.stages.search import search, search_space
from sbs_train.tasks.classification import Classification

EPOCH = 50
UNIFORM = {"W8A8": (8, 8), "W4A4": (4, 4), "W2A4": (2, 4), "W4A2": (4, 2), "W2A2": (2, 2)}
CORE = ("FP32", "W4A4", "W2A4", "W2A2", "SBS W4A4", "SBS W2A4", "SBS W2A2", "random W2A4", "SBS-Q W2A2")
METHODS = (*CORE, "W8A8", "W4A2", "SBS 85x", "SBS 160x", "random W2A2", "SBS-Q W2A4", "SBS-P 2x", "thresholds W2A4")
"""A method and its budget, "SBS W2A4": as many BOPs as that uniform plan has, or a reduction. SBS-P prunes only, SBS-Q
quantizes only; "thresholds" is the search with learned thresholds (metric "error")."""
LENGTHS = {
    "resnet20": {"pretrain_steps": 2000, "steps": 1000, "search_steps": 150},
    # 1.6 s a step on this project's CPUs: three seeds of the core methods take three core-hours.
    "mobilenetv2": {"pretrain_steps": 500, "steps": 300, "search_steps": 50},
}
"""Steps of pretraining, then of every method, of which the search takes some."""
QUICK = {model: {"pretrain_steps": 1000, "steps": 400, "search_steps": 100} for model in LENGTHS}
THRESHOLD_PART = 2.6
"""A search with learned thresholds needs more of the steps than one by loss: 40 instead of 15 percent."""
VALIDATION_IMAGES = 2000
"""A part of the validation split: on two cores the whole of it would cost more than the training."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One point: a method on a network and a seed."""

    model: str
    width: int
    seed: int
    method: str
    pretrain_steps: int
    steps: int
    search_steps: int
    device: str
    compile: bool
    work: Path
    data_dir: Path | None
    cost: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.network}-s{self.seed}-{self.method.replace(' ', '-').lower()}"

    @property
    def network(self) -> str:
        return f"{self.model}-w{self.width}"

    @property
    def float_weights(self) -> Path:
        return self.work / f"{self.network}-s{self.seed}-pretrained" / "checkpoints" / "fp32.safetensors"

    @property
    def result(self) -> Path:
        return self.work / f"{self.name}.json"


def main() -> int:
    """Run what is missing, then write the results."""
    args = arguments()
    lengths = QUICK if args.quick else LENGTHS
    jobs = [
        Job(
            model=net.partition(":")[0],
            width=int(net.partition(":")[2]),
            seed=seed,
            method=method,
            **lengths[net.partition(":")[0]],
            device=args.device,
            compile=args.compile,
            work=args.work,
            data_dir=args.data_dir,
            cost=args.cost,
        )
        for seed in args.seeds
        for net in args.nets
        for method in args.methods or (CORE[:7] if args.quick or net.startswith("mobilenet") else METHODS)
    ]
    jobs = [job for job in jobs if not job.result.is_file()]
    starts = list({(job.network, job.seed): job for job in jobs}.values())
    with ProcessPoolExecutor(args.processes, get_context("spawn"), one_thread) as pool:
        list(pool.map(pretrained, starts))
        for line in pool.map(run_once, jobs):
            print(line, file=sys.stderr, flush=True)
    points = [read_json(path) for path in sorted(args.work.glob("*-w*-s*-*.json"))]
    write_report(points, args.work / "results.json")
    return 0


def arguments() -> argparse.Namespace:
    """The command line; --quick changes its defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_known_args()[0].quick
    nets = ["resnet20:4"] if quick else ["resnet20:16", "resnet20:8", "resnet20:4", "mobilenetv2:16"]
    parser.add_argument("--nets", nargs="+", default=nets, help="MODEL:WIDTH")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0] if quick else [0, 1, 2])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="fuse the quantizers; pays off on a GPU")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/pareto-quick" if quick else "runs/pareto"))
    parser.add_argument("--cost", type=Path, help="a device model: targets may be in milliseconds")
    return parser.parse_args()


def one_thread() -> None:
    """Start of a worker: more threads than cores would wait for each other."""
    torch.set_num_threads(1)
    keep_freed_memory()


def run_once(job: Job) -> str:
    """Train one point and write its result; a line to show."""
    ctx, network = prepared(job)
    kind, _, budget = job.method.partition(" ")
    plan, plan_numbers = None, {"reduction": 1.0, "kept_channels": 1.0}
    if kind != "FP32":
        calibrate(ctx, network)
        if budget:
            target = f"{reduction_of(network, *UNIFORM[budget]):.1f}x" if budget in UNIFORM else budget
            ctx.config = dataclasses.replace(ctx.config, target=target)
        if kind in UNIFORM:
            names = [name for name in network.layers if name not in network.topology.fixed]
            bits_w, bits_a = UNIFORM[kind]
            plan = freeze(network, dict.fromkeys(names, bits_w), dict.fromkeys(names, bits_a))
            reestimate_batchnorm(ctx, network.model)
        elif kind == "random":
            plan = random_plan(network, float(ctx.config.target.rstrip("x")), job.seed)
            reestimate_batchnorm(ctx, network.model)
        else:
            plan = search(ctx, network).plan
        plan_numbers = numbers_of(plan, job.cost)
    made_from = {"plan": plan.model_dump_json() if plan else "", "fp32": output_hash(ctx, "fp32")}
    made_from["config"] = str(to_dict(ctx.config))
    train_frozen(ctx, Stage(name="finetune", output="finetune", made_from=made_from), network)
    name = torch.cuda.get_device_name(ctx.fabric.device) if ctx.fabric.device.type == "cuda" else clocks.cpu_model()
    point = {
        "network": job.network,
        "seed": job.seed,
        "method": job.method,
        **plan_numbers,
        "steps": [job.pretrain_steps, job.steps],
        "val_top1": evaluate(ctx, network.model, "val")["top1"],
        **evaluate(ctx, network.model, "test"),
        "machine": {"device": name, "torch": torch.__version__},
    }
    write_json(job.result, point)
    return f"{job.name}: {point['top1']:.2f} % at {point['reduction']:.1f}x"


def numbers_of(plan: Plan, cost: Path | None) -> dict[str, float]:
    """What a plan spends: reduction of BOPs, channels kept, and the milliseconds that a device model expects of it."""
    kept = sum(len(group.kept) for group in plan.groups) / sum(group.size for group in plan.groups)
    numbers = {"reduction": plan.cost.reduction, "kept_channels": kept}
    if cost is not None:
        device = load_device(cost)
        numbers["expected_ms"] = predicted_ms(device, network_in(device, plan), plan)
    return numbers


def pretrained(job: Job) -> None:
    """Train the float weights of a network and a seed, unless they are there."""
    ctx = opened(job, config_of(job), job.float_weights.parent.parent)
    pretrain(ctx, built(ctx))


def built(ctx: Context) -> Network:
    """The network of a context, on its device."""
    network = network_of(ctx.config, ctx.feed.task, model_for(ctx.config, ctx.feed.task))
    network.model.to(ctx.fabric.device)
    network.model.to(memory_format=fastest_layout(network, ctx.fabric.device))
    return network


def reduction_of(network: Network, bits_w: int, bits_a: int) -> float:
    """How much cheaper a calibrated network is with the same bits in all layers that have a choice."""
    space = search_space(network)
    count = len(space.searched)
    return space.reduction([bits_w] * count, [bits_a] * count, [1.0] * len(space.prunable))


def prepared(job: Job) -> tuple[Context, Network]:
    """A context whose fine-tuning takes all steps the method has left, and the pretrained network."""
    kind = job.method.partition(" ")[0]
    searched = {"SBS": 1.0, "SBS-Q": 1.0, "SBS-P": 1.0, "thresholds": THRESHOLD_PART}.get(kind, 0.0)
    search_epochs = round(job.search_steps * searched / EPOCH)
    config = dataclasses.replace(
        config_of(job),
        weights=job.float_weights,
        mode="quantize" if kind == "SBS-Q" else "prune" if kind == "SBS-P" else "joint",
        # The paper quantizes convolutions and linear layers alone.
        search=SearchConfig(
            epochs=max(1, search_epochs),
            steps_per_epoch=EPOCH,
            quantize_residual=False,
            metric="error" if kind == "thresholds" else "loss",
        ),
        finetune=FinetuneConfig(epochs=job.steps // EPOCH - search_epochs, steps_per_epoch=EPOCH),
    )
    ctx = opened(job, config, job.work / job.name)
    network = built(ctx)
    pretrain(ctx, network)
    return ctx, network


def config_of(job: Job) -> TrainConfig:
    """What all methods share."""
    return TrainConfig(
        model=job.model,
        data="fashion-mnist",
        data_dir=job.data_dir,
        width=job.width,
        seed=job.seed,
        device=job.device,
        compile=job.compile,
        cost=job.cost if job.method.endswith("ms") else None,
        pretrain=PretrainConfig(epochs=math.ceil(job.pretrain_steps / EPOCH), steps_per_epoch=EPOCH),
    )


def opened(job: Job, config: TrainConfig, path: Path) -> Context:
    """A context on part of the validation split."""
    data = load_dataset("fashion-mnist", job.data_dir)
    assert isinstance(data, MemoryDataset)
    data = dataclasses.replace(data, val=data.val[:VALIDATION_IMAGES])
    ctx = open_context(create_run(path), config, Classification(data=data, batch_size=config.batch_size))
    ctx.console.quiet = True
    return ctx


def random_plan(network: Network, target: float, seed: int) -> Plan:
    """Bits that fall at random, gate by gate, from 8 until the budget is met."""
    rng, space = random.Random(seed), search_space(network)
    bits = {kind: [8] * len(space.searched) for kind in "wa"}
    ones = [1.0] * len(space.prunable)
    while space.reduction(bits["w"], bits["a"], ones) < target and max(bits["w"] + bits["a"]) > 2:
        row, index = bits[rng.choice("wa")], rng.randrange(len(space.searched))
        row[index] = max(2, row[index] // 2)
    names = space.searched
    return freeze(network, dict(zip(names, bits["w"], strict=True)), dict(zip(names, bits["a"], strict=True)))


if __name__ == "__main__":
    sys.exit(main())
