"""Training steps on a device: FP32, plain QAT and SBS search, eager and compiled, interleaved in one run.

    python benchmarks/gpu_train.py --out train.json [--device cuda|cpu] [--width 16] [--batch 128] [--rounds 10]

A step is forward, backward and no optimizer, on ResNet-20 with 32x32 images. QAT is the same network with its gates
frozen: quantizers with learned clip values, as in fine-tuning. SBS alternates weight and activation thresholds, so its
time is the mean over both kinds of step.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.stages.plans import Network, build_network, fastest_layout
from sbs_train.stages.search import make_bank, take_turns

IMAGE = InputSpec(channels=3, height=32, width=32, mean=[0.0] * 3, std=[1.0] * 3)
Step = Callable[[int], None]


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device(args.device)
    steps = {
        "fp32": fp32_step(args, device),
        "qat": qat_step(args, device, compiled=False),
        "sbs": sbs_step(args, device, compiled=False),
        "qat compiled": qat_step(args, device, compiled=True),
        "sbs compiled": sbs_step(args, device, compiled=True),
    }
    peaks = {name: warm_up(step, device) for name, step in steps.items()}
    times = interleaved(steps, device, args.rounds)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = {
        name: {
            "step_ms_p50": 1e3 * median[name],
            "step_ms_min": 1e3 * min(times[name]),
            "time_vs_fp32": median[name] / median["fp32"],
            "time_vs_qat": median[name] / median["qat"],
            "peak_mib": peaks[name],
        }
        for name in steps
    }
    shape = {"width": args.width, "batch": args.batch, "rounds": args.rounds, "device": str(device)}
    args.out.write_text(json.dumps({"network": "resnet20", **shape, "steps": rows}, indent=1) + "\n")
    print(json.dumps(rows))
    return 0


def fp32_step(args: argparse.Namespace, device: torch.device) -> Step:
    """The float network."""
    model = build_model(ModelSpec(name="resnet20", width=args.width, num_classes=100), IMAGE.channels).to(device)
    x, y = batch_of(args, device)

    def step(index: int) -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return step


def qat_step(args: argparse.Namespace, device: torch.device, *, compiled: bool) -> Step:
    """Quantizers with frozen gates at 4 bits."""
    network = network_on(args, device, compiled)
    for name, layer in network.layers.items():
        if name not in network.topology.fixed:
            layer.set_bits(4, 4)
    x, y = batch_of(args, device)

    def step(index: int) -> None:
        network.model.zero_grad()
        F.cross_entropy(network.model(x), y).backward()

    return step


def sbs_step(args: argparse.Namespace, device: torch.device, *, compiled: bool) -> Step:
    """Quantizers with learnable gates, pruning gates and the cost."""
    network = network_on(args, device, compiled)
    bank = make_bank(network)
    for name in bank.searched:
        network.layers[name].gather_metrics = True
    x, y = batch_of(args, device)

    def step(index: int) -> None:
        network.model.zero_grad()
        bank.zero_grad()
        take_turns(bank, network.config.search, index)
        gates = bank()
        (F.cross_entropy(network.model(x), y) + 0.05 * torch.log(gates.bops)).backward()

    return step


def network_on(args: argparse.Namespace, device: torch.device, compiled: bool) -> Network:
    """A quantizable ResNet-20 with plausible clip values."""
    config = TrainConfig(width=args.width, compile=compiled, search=SearchConfig(quantize_residual=False))
    network = build_network(config, ModelSpec(name="resnet20", width=args.width, num_classes=100), IMAGE)
    network.model.to(device)
    network.model.to(memory_format=fastest_layout(network, device))
    network.set_grids({name: name == "conv1" for name in network.layers})
    for layer in network.layers.values():
        nn.init.constant_(layer.clip_w, 3.0)
        nn.init.constant_(layer.clip_a, 2.0)
    return network


def batch_of(args: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_NCHW, y_N), the same for every network."""
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(args.batch, IMAGE.channels, IMAGE.height, IMAGE.width, generator=generator)
    return x_NCHW.to(device), torch.randint(0, 100, (args.batch,), generator=generator).to(device)


def warm_up(step: Step, device: torch.device) -> float | None:
    """Compile and settle; peak memory of a step in MiB, None on a CPU."""
    for index in range(4):
        step(index)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for index in range(2):
        step(index)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def interleaved(steps: dict[str, Step], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds a step, each the mean of an even and an odd one, every method in turn and in random order."""
    order = list(steps)
    times: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            steps[name](0)
            steps[name](1)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) / 2)
    return times


if __name__ == "__main__":
    sys.exit(main())
