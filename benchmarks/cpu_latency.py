"""Latency on a CPU: FP32, onnxruntime's quantize_static, ours, ours pruned; under ONNX Runtime and OpenVINO.

    python benchmarks/cpu_latency.py                                     three networks, about 20 minutes
    python benchmarks/cpu_latency.py --networks resnet18 --rounds 3      a quick look

One thread, batch 1, 224x224 images. All models of a network take turns in random order in one process. Models are made
once and kept in `--models`; ours come from a run like any other (sbs-train with no epochs, then the export).

Where the processor has no VNNI, integer kernels for int8 weights saturate: "error" says how far their logits are from
the same graph computed in float, so that a time is seen with what it is worth. docs/cpu_latency.md keeps the numbers.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cpu_networks
import numpy as np
import torch
from cpu_networks import ENGINES, open_engine
from pages import publish, table

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.products import pairs_saturate
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.measure.protocol import Measurement, Protocol, measure, speedup

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
FP32, PEER, OURS, PRUNED = "FP32", "quantize_static", "ours", "ours, pruned"
PEER_EXACT = "quantize_static, exact products"
PRUNED_GOAL = 1.4
ERROR_IMAGES = 4

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure; write the numbers and the page; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", type=Path, default=Path("runs/cpu_latency"))
    parser.add_argument("--out", type=Path, default=Path("runs/cpu_latency.json"), help="the page lies beside it, .md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.models.mkdir(parents=True, exist_ok=True)
    protocol = Protocol(rounds=args.rounds, block_iterations=(3, 50))
    found: Row = {
        "machine": cpu_networks.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ENGINES},
        "protocol": asdict(protocol),
        "networks": [measured(name, args.models, protocol) for name in args.networks],
    }
    publish(args.out, found, page(found))
    return 0 if all(goal["met"] for network in found["networks"] for goal in network["goals"]) else 1


def measured(name: str, folder: Path, protocol: Protocol) -> Row:
    """All models of one network on both engines."""
    run = cpu_networks.make_run(name, folder)
    pruned, gone = cpu_networks.make_pruned_run(run, folder / f"{name}-pruned")
    peer = folder / f"{name}.peer.onnx"
    cpu_networks.make_peer(run.model_fp32, run.golden, peer)
    files = {FP32: run.model_fp32, PEER: peer, OURS: run.model_ort, PRUNED: pruned.model_ort}
    contestants: list[tuple[str, str, Path, dict[str, bool]]] = [
        (engine, label, path, {}) for engine in ENGINES for label, path in files.items()
    ]
    if pairs_saturate():
        # Unless it is told otherwise, ONNX Runtime saturates; our sessions tell it.
        contestants[contestants.index(("onnxruntime", PEER, peer, {}))][3]["exact"] = False
        contestants.append(("onnxruntime", PEER_EXACT, peer, {}))
    with np.load(run.golden) as arrays:
        images: FloatArray = arrays["inputs"][:ERROR_IMAGES].astype(np.float32)
    rows: list[Row] = []
    with ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}
        for engine, label, path, settings in contestants:
            precision = "fp32" if label == FP32 else "int8"
            opened = stack.enter_context(open_engine(engine, path, precision, **settings))
            rows.append({"engine": engine, "model": label, "error": error(opened, path, images)})
            runs[f"{engine} {label}"] = partial(opened.latency_ms, images[:1])
        times = measure(runs, protocol)
    for row in rows:
        row |= result(times, row["engine"], row["model"])
        print(f"{name} {row['engine']} {row['model']}: {row['p50_ms']:.1f} ms", file=sys.stderr, flush=True)
    return {"network": name, "channels_pruned": gone, "rows": rows, "goals": goals(times)}


def error(engine: Engine, path: Path, images: FloatArray) -> float:
    """Root mean square difference of the logits to the same graph computed node by node, in their deviation."""
    with OnnxRuntimeEngine(path, SessionSettings(precision="fp32", optimization="none")) as plain:
        expected = plain.run(images)
    return float(np.sqrt(np.mean(np.square(engine.run(images) - expected))) / expected.std())


def result(times: dict[str, Measurement], engine: str, model: str) -> Row:
    """One row's numbers: milliseconds, and how many times faster than FP32 on the same engine."""
    own = times[f"{engine} {model}"]
    latency = own.latency()
    ratio, *interval = speedup(times[f"{engine} {FP32}"], own)
    return {
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "cov": latency.cov,
        "iterations": latency.iterations,
        "vs_fp32": ratio,
        "vs_fp32_interval": interval,
    }


def goals(times: dict[str, Measurement]) -> list[Row]:
    """Ours, unpruned and pruned, against quantize_static's model on each engine."""
    rows: list[Row] = []
    peers = [(engine, peer) for engine in ENGINES for peer in (PEER, PEER_EXACT) if f"{engine} {peer}" in times]
    for engine, peer in peers:
        for model, wanted in ((OURS, 1.0), (PRUNED, PRUNED_GOAL)):
            ratio, *interval = speedup(times[f"{engine} {peer}"], times[f"{engine} {model}"])
            row = {"engine": engine, "model": model, "peer": peer, "wanted": wanted, "met": ratio >= wanted}
            rows.append({**row, "vs_peer": ratio, "vs_peer_interval": interval})
    return rows


def page(found: Row) -> list[str]:
    """Lines of Markdown: machine, tables, goals."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{found['machine']} · {versions} · {found['protocol']['rounds']} rounds", ""]
    for network in found["networks"]:
        lines += [f"## {network['network']}", ""]
        lines += [f"Pruned: {network['channels_pruned']:.0%} of the prunable channels are gone.", ""]
        lines += table("engine | model | p50 ms | p90 ms | variation | over FP32 | error", map(cells, network["rows"]))
        lines.append("")
        for goal in network["goals"]:
            lines.append(
                f"- {goal['model']} against {goal['peer']} under {goal['engine']}: "
                f"{times_faster(goal['vs_peer'], goal['vs_peer_interval'])}, the goal is at least {goal['wanted']:g}x: "
                f"{'met' if goal['met'] else 'missed'}."
            )
        lines.append("")
    return lines


def cells(row: Row) -> list[str]:
    """One line of the table of a network."""
    times = [f"{row['p50_ms']:.1f}", f"{row['p90_ms']:.1f}", f"{row['cov']:.1%}"]
    return [
        row["engine"],
        row["model"],
        *times,
        times_faster(row["vs_fp32"], row["vs_fp32_interval"]),
        f"{row['error']:.3f}",
    ]


def times_faster(ratio: float, interval: list[float]) -> str:
    """A speed-up with its interval."""
    return f"{ratio:.2f}x ({interval[0]:.2f}–{interval[1]:.2f})"


if __name__ == "__main__":
    sys.exit(main())
