"""Latency on a CPU: FP32, onnxruntime's quantize_static, ours, ours pruned; under ONNX Runtime and OpenVINO.

    python benchmarks/cpu_latency.py            three networks, about 20 minutes, to docs/cpu_latency.json and .md
    python benchmarks/cpu_latency.py --report   only the page, from docs/cpu_latency.json

One thread, batch 1, 224x224 images. All models of a network take turns in random order in one process. Models are made
once and kept in `--models`; ours come from a run like any other (sbs-train with no epochs, then the export).

Where the processor has no VNNI, integer kernels for int8 weights saturate: "error" says how far their logits are from
the same graph computed in float, so that a time is seen with what it is worth.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cpu_networks
import numpy as np
import torch

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from sbs_deploy.backends.openvino.engine import OpenVinoEngine
from sbs_deploy.backends.products import pairs_saturate
from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.legalise.graph import Legalisation, legal_model
from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import Measurement, Protocol, measure, speedup
from sbs_train.contract.results import Machines
from sbs_train.contract.rundir import read_json, write_json, write_text

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2")
ENGINES: dict[str, Callable[..., Engine]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}
FP32, PEER, OURS, PRUNED = "FP32", "quantize_static", "ours", "ours, pruned"
PEER_EXACT = "quantize_static, exact products"
OURS_TRT = "ours, TensorRT's dialect"
PROMOTED = "ours, promoted"
"""`--legalise promote`: 255 codes instead of 127 where an input is never negative, and no Clips."""
PRUNED_GOAL = 1.4
ERROR_IMAGES = 4

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, or only report; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", type=Path, default=Path("runs/cpu_latency"))
    parser.add_argument("--out", type=Path, default=Path("docs/cpu_latency.json"))
    args = parser.parse_args(argv)
    if not args.report:
        torch.set_num_threads(1)
        args.models.mkdir(parents=True, exist_ok=True)
        protocol = Protocol(rounds=args.rounds, block_iterations=(3, 50))
        before = clocks.machine_state()
        networks = [measured(name, args.models, protocol) for name in args.networks]
        found = {
            "date": date.today().isoformat(),
            "machine": Machines(before=before, after=clocks.machine_state()).model_dump(mode="json"),
            "versions": {name: importlib.metadata.version(name) for name in ENGINES},
            "protocol": asdict(protocol),
            "networks": networks,
        }
        write_json(args.out, found)
    found = read_json(args.out)
    text = page(found)
    write_text(args.out.with_suffix(".md"), text)
    print(text)
    return 0 if all(goal["met"] for network in found["networks"] for goal in network["goals"]) else 1


def measured(name: str, folder: Path, protocol: Protocol) -> Row:
    """All models of one network on both engines."""
    run = cpu_networks.make_run(name, folder)
    pruned, gone = cpu_networks.make_pruned_run(run, folder / f"{name}-pruned")
    peer = folder / f"{name}.peer.onnx"
    cpu_networks.make_peer(run.model_fp32, run.golden, peer)
    promote = Legalisation(precision="int8", activations="promote")
    promoted = legal_model(run, ONNXRUNTIME, promote).path
    files = {FP32: run.model_fp32, PEER: peer, OURS: run.model_ort, PROMOTED: promoted, PRUNED: pruned.model_ort}
    contestants: list[tuple[str, str, Path, dict[str, bool]]] = [
        (engine, label, path, {}) for engine in ENGINES for label, path in files.items()
    ]
    contestants.append(("openvino", OURS_TRT, run.model_trt, {}))
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
            opened = stack.enter_context(
                ENGINES[engine](path, precision="fp32" if label == FP32 else "int8", **settings)
            )
            rows.append({"engine": engine, "model": label, "error": error(opened, path, images)})
            runs[f"{engine} {label}"] = partial(opened.latency_ms, images[:1])
        times = measure(runs, protocol)
    for row in rows:
        row |= result(times, row["engine"], row["model"])
        print(f"{name} {row['engine']} {row['model']}: {row['p50_ms']:.1f} ms", file=sys.stderr, flush=True)
    return {"network": name, "channels_pruned": gone, "rows": rows, "goals": goals(times)}


def error(engine: Engine, path: Path, images: FloatArray) -> float:
    """Root mean square difference of the logits to the same graph computed node by node, in their deviation."""
    with OnnxRuntimeEngine(path, precision="fp32", optimization="none") as plain:
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
    """Ours, unpruned and pruned, against the peer's model on each engine."""
    rows: list[Row] = []
    peers = [(engine, peer) for engine in ENGINES for peer in (PEER, PEER_EXACT) if f"{engine} {peer}" in times]
    for engine, peer in peers:
        for model, wanted in ((OURS, 1.0), (PROMOTED, 1.0), (PRUNED, PRUNED_GOAL)):
            ratio, *interval = speedup(times[f"{engine} {peer}"], times[f"{engine} {model}"])
            rows.append(
                {
                    "engine": engine,
                    "model": model,
                    "peer": peer,
                    "vs_peer": ratio,
                    "vs_peer_interval": interval,
                    "wanted": wanted,
                    "met": ratio >= wanted,
                }
            )
    return rows


def page(found: Row) -> str:
    """The Markdown page."""
    machine, protocol = found["machine"]["before"], found["protocol"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    load = " and ".join(f"{state['load_average_1min']} {when}" for when, state in found["machine"].items())
    lines = [
        "# Latency on a CPU",
        "",
        f"{found['date']} · {machine['cpu']}, {machine['cores']} cores ({' '.join(machine['vector_flags'])}), "
        f"load {load} · {versions}",
        "",
        "Regenerate with `python benchmarks/cpu_latency.py`. One thread, batch 1, 224x224 images, 1000 classes, random "
        f"weights with BatchNorm statistics of data; {protocol['rounds']} rounds, in each of which all models of a "
        "network take turns in random order. Ratios are medians over the rounds with 95 % intervals. quantize_static: "
        "onnxruntime's, after its own preparation, uint8 activations, int8 weights per channel, QDQ. Ours: every layer "
        "at 8 bits, from `sbs-train --search.epochs 0` and `sbs-deploy export`; promoted: `--legalise promote` gives "
        "inputs that are never negative 255 codes and drops the Clips at 127. Error: difference of the logits to the "
        "same graph computed in float, in their deviation.",
        "",
    ]
    if any(row["model"] == PEER_EXACT for network in found["networks"] for row in network["rows"]):
        lines += [
            "This processor has no VNNI: kernels for int8 weights saturate at 16 bits. Ours are exact under ONNX "
            "Runtime (only layers whose codes exceed 127 need its slower kernels); quantize_static's model saturates "
            "unless all its layers run in those. OpenVINO has no such choice.",
            "",
        ]
    for network in found["networks"]:
        lines += [f"## {network['network']}", ""]
        lines += [f"Pruned: {network['channels_pruned']:.0%} of the prunable channels are gone.", ""]
        lines += [
            "| engine | model | p50 ms | p90 ms | variation | over FP32 | error |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in network["rows"]:
            low, high = row["vs_fp32_interval"]
            lines.append(
                f"| {row['engine']} | {row['model']} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} | {row['cov']:.1%} "
                f"| {row['vs_fp32']:.2f}x ({low:.2f}–{high:.2f}) | {row['error']:.3f} |"
            )
        lines.append("")
        for goal in network["goals"]:
            low, high = goal["vs_peer_interval"]
            lines.append(
                f"- {goal['model']} against {goal['peer']} under {goal['engine']}: {goal['vs_peer']:.2f}x "
                f"({low:.2f}–{high:.2f}), the goal is at least {goal['wanted']:g}x: "
                f"{'met' if goal['met'] else 'missed'}."
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
