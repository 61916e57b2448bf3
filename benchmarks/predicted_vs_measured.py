"""Does the cost that a search goes by predict the time? Paper BOPs, deployable BOPs and the device model, as measured.

    python benchmarks/predicted_vs_measured.py                                   two networks and engines, 40 minutes
    python benchmarks/predicted_vs_measured.py --networks resnet18 --engines openvino --rounds 5

ResNet-18 and MobileNetV2 at 224x224, one thread, batch 1. The device model comes from `sbs-deploy profile-device`; the
plans are made afterwards and exported like any run: random bits and kept channels, and what the search's own allocation
finds for random losses, by BOPs or by milliseconds. All plans of a network take turns in random order. Every
finished table is one JSON file, so an interrupted benchmark goes on. docs/predicted_vs_measured.md keeps the numbers.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import cpu_networks
import numpy as np
import torch
from cpu_networks import ENGINES, open_engine
from pages import publish, table
from scipy.stats import kendalltau

from sbs_deploy.backends.spec import choose_backend
from sbs_deploy.graph.arrays import noise
from sbs_deploy.measure.devices.command import ProfileOptions, profile_device
from sbs_deploy.measure.protocol import Contestant, Protocol, contestant, measure
from sbs_train.contract.device import DeviceModel
from sbs_train.contract.latency import device_cost, network_in, predicted_ms
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir, read_json, write_json
from sbs_train.network.network import Network
from sbs_train.quant.sensitivity import Losses
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.allocate import allocate
from sbs_train.stages.limits import Limit
from sbs_train.stages.weights import restore

NETWORKS = ("resnet18", "mobilenet_v2")
BLOCK = 16
"""Channels that are pruned together, as the search would on these targets."""
RANDOM = 10
"""Plans."""
SEED = 2000
"""Of the first plan."""
SEARCHED = (0.3, 0.5, 0.7)
"""How far between the least and the greatest reduction, in logarithms."""
DENSE = "dense"
PREDICTORS = ("bops", "deployable_bops", "device_ms")
TAU_GOAL, ERROR_GOAL = 0.9, 0.1

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure; write the numbers and the page; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--models", type=Path, default=Path("runs/predicted_vs_measured"))
    parser.add_argument("--out", type=Path, default=Path("runs/predicted_vs_measured.json"), help="the page beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.models.mkdir(parents=True, exist_ok=True)
    protocol = Protocol(rounds=args.rounds, block_iterations=(3, 50))
    tables = [measured(name, engine, args.models, protocol) for name in args.networks for engine in args.engines]
    publish(args.out, {"protocol": asdict(protocol), "tables": tables}, page(tables))
    return 0 if all(found["met"] for found in tables) else 1


def measured(name: str, engine: str, folder: Path, protocol: Protocol) -> Row:
    """All plans of one network on one engine, and where and when that was."""
    result = folder / f"{name}.{engine}.json"
    if result.is_file():
        return dict(read_json(result))
    run = cpu_networks.make_run(name, folder)
    device = profile_device(
        ProfileOptions(
            backend=choose_backend(engine).backend,
            models=(str(run.root),),
            out=folder / f"device.{engine}.{name}.json",
            input=(3, cpu_networks.IMAGE, cpu_networks.IMAGE),
        )
    )
    found = {
        **table_of(name, engine, device, run, make_plans(run, folder / f"{name}-plans", {engine: device}), protocol),
        "machine": cpu_networks.machine(),
        "version": importlib.metadata.version(engine),
        "device": {"held_out": device.held_out.model_dump()},
    }
    write_json(result, found)
    return found


def make_plans(run: RunDir, folder: Path, devices: dict[str, DeviceModel]) -> dict[str, RunDir]:
    """Exported plans by name; those that lie there are left alone."""
    _, dense = restore(run)
    assert dense is not None
    network, _ = restore(run)
    wanted: dict[str, Callable[[np.random.Generator], tuple[Any, Any, Any]]] = {}
    for i in range(RANDOM):
        wanted[f"random {i + 1}"] = partial(random_choices, network)
    for cost in ("bops", *devices):
        for part in SEARCHED:
            wanted[f"searched {cost} {part:g}"] = partial(searched_choices, network, devices.get(cost), dense, part)
    found = {}
    for seed, (name, choose) in enumerate(wanted.items()):
        found[name] = RunDir(folder / name.replace(" ", "-"))
        if not found[name].model_ort.is_file():
            cpu_networks.write_plan(run, found[name], *choose(np.random.default_rng(SEED + seed)))
            print(f"{name}: exported", file=sys.stderr, flush=True)
    return found


def random_choices(network: Network, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Bits of weights and inputs by layer, kept channels by group: a quarter to all, in multiples of BLOCK."""
    searched = [name for name in network.layers if name not in network.topology.fixed]
    bits_w, bits_a = ({name: int(rng.choice([2, 4, 8])) for name in searched} for _ in range(2))
    kept = {}
    for group in network.topology.groups:
        if group.prunable:
            counts = [count for count in range(BLOCK, group.size, BLOCK) if 4 * count >= group.size]
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
    ladders = []
    for levels in (space.bits_w, space.bits_a):
        size_K = 0.2 ** np.arange(len(levels)) * (np.arange(len(levels)) < len(levels) - 1)  # the finest loses nothing
        ladders.append(-np.sort(-rng.exponential(size=(len(space.searched), len(levels))) * size_K, 1))
    blocks = [rng.exponential(0.05, space.blocks(group)) for group in space.prunable]
    losses = Losses(weights_SK=ladders[0], inputs_SK=ladders[1], blocks=blocks)
    low, high = space.reachable()
    reduction = low ** (1 - part) * high**part
    found = allocate(space, losses, [Limit(cost=space.cost, most=space.cost.reference / reduction)])
    bits = [
        {name: options[level] for name, level in zip(space.searched, chosen, strict=True)}
        for options, chosen in ((space.bits_w, found.weights_S), (space.bits_a, found.inputs_S))
    ]
    return bits[0], bits[1], space.kept(map(range, found.blocks_P))


def table_of(
    name: str, engine: str, device: DeviceModel, run: RunDir, plans: dict[str, RunDir], protocol: Protocol
) -> Row:
    """All plans of a network on one engine, predicted and measured."""
    files = {DENSE: run, **plans}
    with ExitStack() as stack:
        runs: dict[str, Contestant] = {}
        for plan, found in files.items():
            opened = stack.enter_context(open_engine(engine, found.model_ort, "int8"))
            runs[plan] = contestant(opened, noise(opened.inputs, 1))
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
            }
        )
    return {"network": name, "engine": engine, "rows": rows, **scores(rows)}


def scores(rows: list[Row]) -> Row:
    """Rank correlation of every predictor with the measured time, and the device model's errors."""
    plans = [row for row in rows if row["plan"] != DENSE]
    ms = [row["measured_ms"] for row in plans]
    errors = [abs(row["device_ms"] / row["measured_ms"] - 1) for row in plans]
    kendall = {key: float(kendalltau([row[key] for row in plans], ms).statistic) for key in PREDICTORS}
    median = float(np.median(errors))
    met = kendall["device_ms"] >= TAU_GOAL and median <= ERROR_GOAL
    return {"kendall": kendall, "median_error": median, "worst_error": max(errors), "met": met}


def page(tables: list[Row]) -> list[str]:
    """Lines of Markdown: correlations, goals, plans."""
    header = "network | engine | plans | Kendall τ: BOPs | deployable BOPs | device model | median error | worst | goal"
    rows = []
    for found in tables:
        ranks = [f"{found['kendall'][key]:.2f}" for key in PREDICTORS]
        errors = [f"{found['median_error']:.1%}", f"{found['worst_error']:.1%}", "met" if found["met"] else "missed"]
        rows.append([found["network"], found["engine"], str(len(found["rows"]) - 1), *ranks, *errors])
    lines = table(header, rows)
    lines += ["", f"Goal: device model τ at least {TAU_GOAL:g} and median error at most {ERROR_GOAL:.0%}.", ""]
    for found in tables:
        held = found["device"]["held_out"]
        lines.append(
            f"- {found['network']}, {found['engine']} {found['version']}: {held['networks']} slim networks that were "
            f"not used are off by {held['median_error']:.1%} (median) and {held['worst_error']:.1%} (worst); "
            f"{found['machine']}."
        )
    for found in tables:
        lines += ["", f"## {found['network']}, {found['engine']}", ""]
        plans = sorted(found["rows"], key=lambda row: row["measured_ms"])
        lines += table("plan | GBOPs | deployable GBOPs | predicted ms | measured ms | error", map(cells, plans))
    return lines


def cells(row: Row) -> list[str]:
    """One line of the table of plans."""
    error = row["device_ms"] / row["measured_ms"] - 1
    gbops = [f"{row[key] / 1e9:.2f}" for key in ("bops", "deployable_bops")]
    return [row["plan"], *gbops, f"{row['device_ms']:.2f}", f"{row['measured_ms']:.2f}", f"{error:+.1%}"]


if __name__ == "__main__":
    sys.exit(main())
