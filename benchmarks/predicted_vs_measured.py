"""Does what a search pays predict the time? Paper BOPs, deployable BOPs and the device model against measured latency.

    python benchmarks/predicted_vs_measured.py            two networks, two engines, about 40 minutes
    python benchmarks/predicted_vs_measured.py --report   only the page, from docs/predicted_vs_measured.json

ResNet-18 and MobileNetV2 at 224x224, one thread, batch 1. The device model comes from `sbs-deploy profile-device`; the
plans are made afterwards and exported like any run: random bits and kept channels, and what the search's own allocation
finds for random losses, paying in BOPs or in milliseconds. All plans of a network take turns in random order. Every
finished table is one JSON file, so an interrupted benchmark goes on.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cpu_networks
import numpy as np
import torch
from predicted_report import Row, page, scores

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from sbs_deploy.backends.openvino.engine import OpenVinoEngine
from sbs_deploy.backends.spec import choose_backend
from sbs_deploy.export.dialects import ORT
from sbs_deploy.export.float_onnx import slim_onnx
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices.command import ProfileOptions, profile_device
from sbs_deploy.measure.devices.predict import network_in, predicted_ms
from sbs_deploy.measure.protocol import Protocol, measure
from sbs_train.contract.config import save_config
from sbs_train.contract.device import DeviceModel
from sbs_train.contract.plan import Plan, load_plan, save_plan
from sbs_train.contract.results import Machines
from sbs_train.contract.rundir import RunDir, read_json, write_json, write_text
from sbs_train.quant.latency import device_cost
from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.allocate import Limit, allocate
from sbs_train.stages.freeze import freeze
from sbs_train.stages.plans import Network
from sbs_train.stages.snap import snap_biases
from sbs_train.stages.weights import restore

NETWORKS = ("resnet18", "mobilenet_v2")
ENGINES: dict[str, Callable[..., Engine]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
BLOCK = 16
"""Channels that are pruned together, as the search would on these targets."""
RANDOM, UNALIGNED = 10, 4
SEED = 2000
"""Of the first plan: none of those on which the device model was made what it is."""
SEARCHED = (0.3, 0.5, 0.7)
"""How far between the least and the greatest reduction, in logarithms."""
DENSE = "dense"


def main(argv: list[str] | None = None) -> int:
    """Measure, or only report; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--models", type=Path, default=Path("runs/predicted_vs_measured"))
    parser.add_argument("--out", type=Path, default=Path("docs/predicted_vs_measured.json"))
    args = parser.parse_args(argv)
    if not args.report:
        torch.set_num_threads(1)
        args.models.mkdir(parents=True, exist_ok=True)
        protocol = Protocol(rounds=args.rounds, block_iterations=(3, 50))
        tables = [measured(name, engine, args.models, protocol) for name in args.networks for engine in args.engines]
        write_json(args.out, {"protocol": asdict(protocol), "tables": tables})
    found = read_json(args.out)
    text = page(found)
    write_text(args.out.with_suffix(".md"), text)
    print(text)
    return 0 if all(table["met"] for table in found["tables"]) else 1


def measured(name: str, engine: str, folder: Path, protocol: Protocol) -> Row:
    """All plans of one network on one engine, and where and when that was."""
    result = folder / f"{name}.{engine}.json"
    if result.is_file():
        return dict(read_json(result))
    before, run = clocks.machine_state(), cpu_networks.make_run(name, folder)
    device = profile_device(
        ProfileOptions(
            backend=choose_backend(engine).backend,
            models=(str(run.root),),
            out=folder / f"device.{engine}.{name}.json",
            input=(3, cpu_networks.IMAGE, cpu_networks.IMAGE),
        )
    )
    table = {
        **table_of(name, engine, device, run, make_plans(run, folder / f"{name}-plans", {engine: device}), protocol),
        "date": date.today().isoformat(),
        "machine": Machines(before=before, after=clocks.machine_state()).model_dump(mode="json"),
        "version": importlib.metadata.version(engine),
        "device": {"align": device.align, "held_out": device.held_out.model_dump()},
    }
    write_json(result, table)
    return table


def make_plans(run: RunDir, folder: Path, devices: dict[str, DeviceModel]) -> dict[str, RunDir]:
    """Exported plans by name; those that lie there are left alone."""
    _, dense = restore(run)
    assert dense is not None
    network, _ = restore(run)
    wanted: dict[str, Callable[[np.random.Generator], tuple[Any, Any, Any]]] = {}
    for i in range(RANDOM):
        wanted[f"random {i + 1}"] = partial(random_choices, network, BLOCK)
    for i in range(UNALIGNED):
        wanted[f"unaligned {i + 1}"] = partial(random_choices, network, 4)
    for pays in ("bops", *devices):
        for part in SEARCHED:
            wanted[f"searched {pays} {part:g}"] = partial(searched_choices, network, devices.get(pays), dense, part)
    found = {}
    for seed, (name, choose) in enumerate(wanted.items()):
        found[name] = RunDir(folder / name.replace(" ", "-"))
        if not found[name].model_ort.is_file():
            write_plan(run, found[name], *choose(np.random.default_rng(SEED + seed)))
            print(f"{name}: exported", file=sys.stderr, flush=True)
    return found


def random_choices(network: Network, block: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Bits of weights and inputs by layer, kept channels by group: a quarter to all, in multiples of `block`."""
    searched = [name for name in network.layers if name not in network.topology.fixed]
    bits_w, bits_a = ({name: int(rng.choice([2, 4, 8])) for name in searched} for _ in range(2))
    kept = {}
    for group in network.topology.groups:
        if group.prunable:
            counts = [count for count in range(block, group.size, block) if 4 * count >= group.size]
            kept[group.id] = list(range(int(rng.choice([*counts, group.size]))))
    return bits_w, bits_a, kept


def searched_choices(
    network: Network, device: DeviceModel | None, dense: Plan, part: float, rng: np.random.Generator
) -> tuple[Any, Any, Any]:
    """The same, from the search's allocation for random losses: in milliseconds of a device, or in BOPs."""
    config = replace(network.config.search, group_size=BLOCK)
    cost = None if device is None else device_cost(device, network_in(device, dense), list(network.layers))
    space = SearchSpace(
        network.layers,
        network.topology.groups,
        config,
        fixed=network.topology.fixed,
        prune=True,
        quantize=True,
        float_bops=network.float_bops,
        device=cost,
    )
    ladders = [-np.sort(-rng.exponential(size=(len(space.searched), 3)) * [1, 0.2, 0], 1) for _ in range(2)]
    blocks = [rng.exponential(0.05, space.blocks(group)) for group in space.prunable]
    losses = Losses(weights_SK=ladders[0], inputs_SK=ladders[1], blocks=blocks)
    low, high = space.reachable()
    reduction = low ** (1 - part) * high**part
    found = allocate(space, losses, [Limit(cost=space.cost, most=space.cost.reference / reduction)])
    bits = [
        {name: options[level] for name, level in zip(space.searched, levels, strict=True)}
        for options, levels in ((space.bits_w, found.weights_S), (space.bits_a, found.inputs_S))
    ]
    kept = {
        group.id: list(range(min(group.size, int(count) * BLOCK)))
        for group, count in zip(space.prunable, found.blocks_P, strict=True)
    }
    return bits[0], bits[1], kept


def write_plan(run: RunDir, destination: RunDir, bits_w: Any, bits_a: Any, kept: Any) -> None:
    """The network of `run` frozen to a plan, exported as `sbs-deploy export` does."""
    network, _ = restore(run)
    plan = freeze(network, bits_w, bits_a, kept)
    for row in plan.layers:
        if row.name in network.layers:
            network.layers[row.name].plan_clip_w = row.clip_w
    snap_biases(network, plan)
    slim = slim_network(network, plan)
    model = quantized_onnx(slim_onnx(slim, plan.input), slim.codes, ORT, plan_sha256="benchmark")
    destination.deploy.mkdir(parents=True, exist_ok=True)
    save_config(network.config, destination.config)
    save_plan(plan, destination.plan)
    save_onnx(model, destination.model_ort)


def table_of(
    name: str, engine: str, device: DeviceModel, run: RunDir, plans: dict[str, RunDir], protocol: Protocol
) -> Row:
    """All plans of a network on one engine, predicted and measured."""
    files = {DENSE: run, **plans}
    with ExitStack() as stack:
        image = np.random.default_rng(0).standard_normal((1, 3, cpu_networks.IMAGE, cpu_networks.IMAGE), np.float32)
        runs: dict[str, Callable[[], float]] = {}
        for plan, found in files.items():
            opened = stack.enter_context(ENGINES[engine](found.model_ort, precision="int8"))
            runs[plan] = partial(opened.latency_ms, image)
        times = measure(runs, protocol)
    network = network_in(device, load_plan(run.plan))
    rows: list[Row] = []
    for plan, found in files.items():
        loaded = load_plan(found.plan)
        rows.append(
            {
                "plan": plan,
                "bops": loaded.cost.bops,
                "deployable_bops": loaded.deployable_bops(),
                "device_ms": predicted_ms(device, network, loaded),
                # As in the device model: a neighbour on the machine makes nothing quicker.
                "measured_ms": float(times[plan].all_ms().min()),
                "p50_ms": times[plan].latency().p50_ms,
            }
        )
    table = {"network": name, "engine": engine, "rows": rows, **scores(rows)}
    print(f"{name} {engine}: {table['scores']}", file=sys.stderr, flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
