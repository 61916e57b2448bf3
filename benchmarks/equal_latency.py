"""Accuracy at equal measured latency and equal training: our search, Torch-Pruning, a narrower network, uniform width.

    python benchmarks/equal_latency.py      everything: days on two cores, stop and repeat at will
    python benchmarks/equal_latency.py --nets resnet20:16 --settings openvino:1 --budgets 0.75 --seeds 0
    python benchmarks/equal_latency.py --table            only the page of what is there

A cell is a network, an engine with a batch size, a budget (a part of dense INT8's time), a method and a seed; a
finished one is a JSON file below --out, so an interrupted benchmark goes on where it stopped, in its stage. All methods
start from the same float weights, except the narrower network, which trains from scratch for as many steps in all. All
end in our fine-tuning at 8 bits, our export and `sbs-deploy build`. Latency is that of the engines, in turns with
dense INT8.

Our search is told the budget in milliseconds that the device model expects. Where its engine is slower than asked, the
others may be as slow; where it is faster, they may still use the whole budget. Their sizes are found by building and
measuring engines. docs/equal_latency.md keeps the numbers.
"""

import argparse
import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cpu_networks
import torch
from equal_jobs import Job, epochs, jobs_of
from equal_methods import METHODS, MOST, NARROW, OURS, Ranking, train_plan
from equal_report import page
from pages import publish

from sbs_deploy import cli as deploy
from sbs_deploy.backends.runtime import open_engine
from sbs_deploy.backends.spec import choose_backend
from sbs_deploy.measure.protocol import Protocol, contestant, measure, speedup
from sbs_deploy.measure.run import bench_inputs
from sbs_train import cli
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig, load_config
from sbs_train.contract.console import keep_freed_memory
from sbs_train.contract.device import load_device
from sbs_train.contract.errors import SbsError
from sbs_train.contract.latency import network_in, predicted_ms
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir, read_json, write_json
from sbs_train.stages.train import train, train_float

NARROWER = {"resnet20": range(15, 1, -1), "mobilenetv2": (7, 6, 5, 4)}
IMAGE = "1,28,28"
OVER, UNDER = 1.01, 0.97
"""How far, as a part of what is allowed, a measured latency may lie above and should at most lie below."""
TRIES = 8
"""Engines that are built to find one of the right size."""


def main() -> int:
    """Run what is missing; write the page of what is there; exit 1 where a cell failed."""
    args = arguments()
    torch.set_num_threads(1)
    keep_freed_memory()
    failed = 0
    for job in [] if args.table else [job for job in jobs_of(args) if not job.result.is_file()]:
        name = job.run.relative_to(job.out)
        print(f"{name}: begins", file=sys.stderr, flush=True)
        try:
            found = finished(job)
        except SbsError as error:  # a failure is no number, and stops no other cell
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        else:
            write_json(job.result, found)
            print(f"{name}: {found['top1']:.2f} % in {found['time']:.3f}x", file=sys.stderr, flush=True)
    cells = [read_json(path) for path in sorted(args.out.glob("*/*/*/*-s*.json"))]
    if not cells:
        raise SystemExit(f"no finished cell below {args.out}")
    publish(args.out / "equal_latency.json", {"machine": cpu_networks.machine(), "cells": cells}, page(cells))
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["resnet20:16", "mobilenetv2:8"], help="MODEL:WIDTH")
    parser.add_argument("--settings", nargs="+", default=["openvino:1", "openvino:8", "onnxruntime:1"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.55], help="parts of dense INT8's time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name in ("pretrain", "search"):
        parser.add_argument(f"--{name}-steps", type=int, help="instead of the network's own")
    parser.add_argument("--steps", type=int, help="all steps behind pretraining, the search's among them")
    parser.add_argument("--round-to", type=int, default=4, help="multiple of channels that Torch-Pruning keeps")
    parser.add_argument("--precision", choices=("32", "bf16"), default="bf16")
    parser.add_argument("--ours", default="", help="more flags of sbs-train for our search, in one string")
    parser.add_argument("--out", type=Path, default=Path("runs/equal_latency"))
    parser.add_argument("--weights", type=Path, help="where MODEL_wWIDTH_sSEED hold float runs; made there if absent")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser.parse_args()


def finished(job: Job) -> dict[str, Any]:
    """Train the cell, build and measure its engine; its result."""
    ours = dataclasses.replace(job, method=OURS).result
    allowed = max(job.budget, read_json(ours)["time"]) if job.method != OURS and ours.is_file() else job.budget
    config = config_of(job)
    if job.method == OURS:
        our_search(job, config)
    elif job.method == NARROW:
        narrower(job, allowed)
    else:
        train_plan(config, kept_within(job, config, allowed), job.run)
    time, low, high = time_of(RunDir(job.run), job, rounds=40)
    run = RunDir(job.run)
    plan, metrics = load_plan(run.plan), read_json(run.metrics)
    cell = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(job).items()}
    return cell | {
        "allowed": allowed,
        "time": time,
        "time_interval": [low, high],
        "top1": metrics["finetune"]["top1"],
        "loss": metrics["finetune"]["loss"],
        "bops": plan.cost.bops,
        "kept": {group.id: len(group.kept) for group in plan.groups if len(group.kept) < group.size},
        "deployed": {"model": plan.model.name, **plan.model.arguments},
    }


def config_of(job: Job) -> TrainConfig:
    """What all methods share; Torch-Pruning's plans fine-tune for all steps."""
    return TrainConfig(
        model=job.model,
        width=job.width,
        data="fashion-mnist",
        batch_size=job.batch_size,
        seed=job.seed,
        device="cpu",
        precision="bf16" if job.precision == "bf16" else "32",
        target="1x",
        weights=float_weights(job, job.model, job.width, job.pretrain_steps),
        search=SearchConfig(prune="coupled"),
        finetune=FinetuneConfig(**epochs(job.steps, 200)),
    )


def float_weights(job: Job, model: str, width: int, steps: int) -> Path:
    """Float weights of a network, trained unless they are there.

    Raises:
        SbsError: other weights lie there.
    """
    out = job.weights / f"{job.model}_w{width}_s{job.seed}"
    config = TrainConfig(
        model=model,
        width=width,
        data="fashion-mnist",
        batch_size=job.batch_size,
        seed=job.seed,
        precision="bf16" if job.precision == "bf16" else "32",
        target="1x",
        pretrain=PretrainConfig(**epochs(steps, 800), lr=0.1),
    )
    if (out / "config.json").is_file() and load_config(out / "config.json").pretrain != config.pretrain:
        raise SbsError(f"{out} was not pretrained for {steps} steps; name another folder with --weights")
    train_float(config, out)
    return out / "checkpoints" / "fp32.safetensors"


def our_search(job: Job, config: TrainConfig) -> None:
    """`sbs-train --cost` for the milliseconds that the device model expects of the budget."""
    device_file = device_of(job)
    device, dense = load_device(device_file), load_plan(dense_run(job).plan)
    asked_ms = job.budget * predicted_ms(device, network_in(device, dense), dense)
    search, finetune = epochs(job.search_steps, 50), epochs(job.steps - job.search_steps, 200)
    flags = {
        "model": job.model,
        "width": job.width,
        "data": config.data,
        "batch-size": job.batch_size,
        "seed": job.seed,
        "device": "cpu",
        "precision": job.precision,
        "weights": config.weights,
        "cost": device_file,
        "target": f"{asked_ms:.6g}ms",
        "search.prune": "coupled",
        "search.epochs": search["epochs"],
        "search.steps-per-epoch": search["steps_per_epoch"],
        "finetune.epochs": finetune["epochs"],
        "finetune.steps-per-epoch": finetune["steps_per_epoch"],
    }
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    resumed = ["--resume"] if (job.run / "config.json").is_file() else []
    _call(cli.main, [*given, *job.flags, *resumed, "--out", str(job.run)])


def narrower(job: Job, allowed: float) -> None:
    """The widest narrower network that is fast enough, from scratch, for as many steps as the others take in all."""
    for width in NARROWER[job.model]:
        model = job.model
        if model == "mobilenetv2":
            model = f"{Path(__file__).with_name('narrow_mobilenet.py')}:width_{width}"
        untrained = dataclasses.replace(
            config_of(job),
            model=model,
            width=width,
            weights=None,
            pretrain=PretrainConfig(epochs=0),
            search=SearchConfig(epochs=0),
            finetune=FinetuneConfig(epochs=0),
        )
        if probed(job, f"width {width}", partial(train, untrained)) <= OVER * allowed:
            break
    else:
        raise SbsError(f"no width of {job.model} takes at most {allowed:.2f} of dense INT8's time")
    # The search's steps are the float network's here.
    weights = float_weights(job, model, width, job.pretrain_steps + job.search_steps)
    rest = FinetuneConfig(**epochs(job.steps - job.search_steps, 200))
    train(dataclasses.replace(untrained, weights=weights, finetune=rest), job.run)


def kept_within(job: Job, config: TrainConfig, allowed: float) -> dict[str, list[int]]:
    """The most channels of a ranking whose engine is fast enough, by bisection over measured engines."""
    ranking = Ranking(job.method, config, job.round_to)
    untrained = dataclasses.replace(config, finetune=FinetuneConfig(epochs=0))
    low, high, fitting = 0.0, MOST, {}
    for _ in range(TRIES):
        ratio = (low + high) / 2
        kept = ranking.kept(ratio)
        counts = " ".join(f"{name}:{len(channels)}" for name, channels in sorted(kept.items()))
        time = probed(job, counts, partial(train_plan, untrained, kept))
        if time > OVER * allowed:
            low = ratio
        else:
            high, fitting[time] = ratio, kept
            if time >= UNDER * allowed:
                break
    if not fitting:
        raise SbsError(f"{job.run}: no plan of {TRIES} was within {allowed:.2f} of dense INT8's time")
    return fitting[max(fitting)]


def probed(job: Job, what: str, make: Any) -> float:
    """Time of an untrained network's engine over dense INT8's, measured once for all seeds and methods.

    Args:
        what: names the network among those of this setting.
        make: writes its run directory.
    """
    path = job.setting / "probes.json"
    known: dict[str, float] = read_json(path) if path.is_file() else {}
    if what not in known:
        with tempfile.TemporaryDirectory(dir=job.setting) as folder:
            make(Path(folder) / "run")
            known[what] = time_of(RunDir(Path(folder) / "run"), job, rounds=20)[0]
        write_json(path, known)
    return known[what]


def dense_run(job: Job) -> RunDir:
    """The unpruned network at 8 bits, which no latency depends on the training of."""
    out = job.setting / "dense"
    if not (out / "weights.safetensors.manifest.json").is_file():
        train_plan(dataclasses.replace(config_of(job), finetune=FinetuneConfig(epochs=0)), {}, out)
    return RunDir(out)


def device_of(job: Job) -> Path:
    """device.json of the network on the engine, measured unless it is there."""
    out = job.setting / "device.json"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        measured = {"backend": job.backend, "models": job.model, "width": job.width, "input": IMAGE}
        flags = [word for name, value in measured.items() for word in (f"--{name}", str(value))]
        _call(deploy.main, ["profile-device", *flags, "--batch", str(job.batch), "--out", str(out)])
    return out


def time_of(run: RunDir, job: Job, rounds: int) -> tuple[float, float, float]:
    """Time of a run's INT8 engine over that of dense INT8, and the ends of its 95 percent interval."""
    dense = dense_run(job)
    backend = choose_backend(job.backend).backend
    images = bench_inputs(dense, load_plan(dense.plan), job.batch)
    with ExitStack() as stack:
        runs = {}
        for name, one in (("dense", dense), ("own", run)):
            path = cpu_networks.built(one, job.backend, *cpu_networks.PLANNED)
            engine = open_engine(path, backend, "int8", 1, built=True)
            runs[name] = contestant(stack.enter_context(engine), images)
        times = measure(runs, Protocol(rounds=rounds))
    return speedup(times["own"], times["dense"])


def _call(command: Any, arguments: list[str]) -> None:
    """Run a command line in this process; SbsError if it fails."""
    if code := command(arguments):
        raise SbsError(f"{' '.join(arguments)} ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
