"""INT8 on a CPU: ours as `sbs-deploy build` makes it, all in 8 bits, FP32, and the free tools, on both engines.

    python benchmarks/cpu_latency.py                                     all networks: hours
    python benchmarks/cpu_latency.py --networks resnet18 --rounds 10     a quick look
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/cpu_latency.py             OpenVINO as on a processor without VNNI
    python benchmarks/cpu_latency.py --table                             only the page of what is there

One thread, batch 1, 224x224 images. All models of a network and an engine take turns in random order in one process,
and are compared by CPU time. Ours come from a run like any other (sbs-train with no epochs). The tools: onnxruntime's
quantize_static, and NNCF in an environment of its own, which is made below --models. A network that was measured is one
JSON file, so an interrupted benchmark goes on where it stopped. ONNX Runtime has no switch for older processors, so it
is left out where ONEDNN_MAX_CPU_ISA is set.

Where kernels for int8 weights saturate (no VNNI), a model may be quick and wrong: the JSON has each one's `error`
against the same graph computed in float. docs/cpu_latency.md keeps the numbers.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cpu_networks
import numpy as np
import torch
from cpu_networks import ENGINES, PLANNED, open_engine
from pages import publish, table

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.graph.arrays import Named
from sbs_deploy.measure.protocol import Measurement, Protocol, contestant, disagreement, measure, speedup
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir, read_json, write_json

NETWORKS = {
    name: f"torchvision:{name}"
    for name in (
        "efficientnet_b0",
        "shufflenet_v2_x1_0",
        "mobilenet_v2",
        "regnet_y_400mf",
        "resnet18",
        "mobilenet_v3_large",
        "efficientnet_v2_s",
        "densenet121",
        "mnasnet1_0",
    )
} | {"convnext_atto": "timm:convnext_atto", "vit_tiny": "timm:vit_tiny_patch16_224"}
FP32, ALL, OURS = "FP32", "all INT8", "ours"
STATIC, NNCF = "quantize_static", "NNCF"
PEERS = (STATIC, NNCF)
GOAL = 0.98
"""Least speed of ours over the fastest of the others."""
ERROR_IMAGES = 4
ISA = os.environ.get("ONEDNN_MAX_CPU_ISA", "")

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing; write the numbers and the page; exit 1 where the goal is missed or a network failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", type=Path, default=Path("runs/cpu_latency"), help="networks, models and results")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.models.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in [] if args.table else args.networks:
        result = args.models / f"{name}{'.' if ISA else ''}{ISA}.result.json"
        if result.is_file():
            continue
        print(f"{name}: begins", file=sys.stderr, flush=True)
        try:
            write_json(result, measured(name, args.models, Protocol(rounds=args.rounds, block_iterations=(3, 50))))
        except SbsError as error:  # a failure is no number, and stops no other network
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    networks = [read_json(path) for path in sorted(args.models.glob("*.result.json"))]
    publish(args.models / "cpu_latency.json", networks, page(networks))
    return 1 if failed or any(row["over_fastest"] < GOAL for one in networks for row in one["engines"]) else 0


def measured(name: str, folder: Path, protocol: Protocol) -> Row:
    """All models of one network, engine by engine."""
    run = cpu_networks.make_run(NETWORKS[name], folder)
    if ISA and not (imitated := folder / f"{name}.{ISA}").is_dir():
        shutil.copytree(run.root, imitated, ignore=shutil.ignore_patterns("engines", "placement", "legal"))
    run = RunDir(folder / f"{name}.{ISA}") if ISA else run
    name_in, samples = cpu_networks.golden_input(run.golden)
    inputs = {name_in: samples[:ERROR_IMAGES].astype(np.float32)}
    return {
        "network": name,
        "isa": ISA,
        "machine": cpu_networks.machine(),
        "versions": {engine: importlib.metadata.version(engine) for engine in ENGINES},
        "protocol": asdict(protocol),
        "engines": [
            of_engine(engine, models_of(name, run, engine, folder), inputs, protocol)
            for engine in ENGINES
            if not (ISA and engine == "onnxruntime")
        ],
    }


def models_of(name: str, run: RunDir, engine: str, folder: Path) -> dict[str, Path]:
    """The files that an engine runs, by what made them."""
    static = folder / f"{name}.static.onnx"
    cpu_networks.make_peer(run.model_fp32, run.golden, static)
    nncf = folder / f"{name}.nncf.{'xml' if engine == 'openvino' else 'onnx'}"
    nncf_peer(run, nncf, folder, transformer=name == "vit_tiny")
    files = {FP32: run.model_fp32, STATIC: static, NNCF: nncf}
    planned = cpu_networks.built(run, engine, *PLANNED)
    files[ALL] = planned.with_name(f"planned.{engine}.onnx")
    shutil.copyfile(planned, files[ALL])  # the next build has the same name
    files[OURS] = cpu_networks.built(run, engine)
    return files


def nncf_peer(run: RunDir, out: Path, folder: Path, *, transformer: bool) -> None:
    """Write NNCF's model of a float network, and first the environment that NNCF is installed in.

    Raises:
        SbsError: NNCF cannot be installed, or does not take the network.
    """
    if out.is_file():
        return
    python = folder / "nncf" / "bin" / "python"
    script = Path(__file__).with_name("nncf_peer.py")
    commands = [[python, script, run.model_fp32, run.golden, out, *(["--transformer"] if transformer else [])]]
    if not python.is_file():
        install = [python, "-m", "pip", "install", "--quiet", "nncf", "onnx", "onnxruntime"]
        commands = [[sys.executable, "-m", "venv", python.parents[1]], [*install, "openvino"], *commands]
    for command in commands:
        if subprocess.run([str(word) for word in command], stdout=sys.stderr).returncode:
            raise SbsError(f"{' '.join(map(str, command))} failed")


def of_engine(engine: str, files: dict[str, Path], inputs: Named, protocol: Protocol) -> Row:
    """Times of all models on one engine, and ratios of speed."""
    rows: dict[str, Row] = {}
    failed = {label: why for label in PEERS if (why := failure(engine, files[label], files[FP32], inputs))}
    with ExitStack() as stack:
        runs = {}
        for label in (label for label in files if label not in failed):
            opened = stack.enter_context(opened_as(label, engine, files[label], files[FP32]))
            rows[label] = {"error": error(opened, files[FP32 if files[label].suffix == ".xml" else label], inputs)}
            runs[label] = contestant(opened, _first(inputs))
        times = measure(runs, protocol)
    for label, row in rows.items():
        row |= {"p50_ms": times[label].latency().p50_ms, "quickest_ms": times[label].quickest_ms}
        row["apart"] = disagreement(times[FP32], times[label])
    return {"engine": engine, "models": rows, "failed": failed, **ratios(times)}


def opened_as(label: str, engine: str, path: Path, float_model: Path) -> Engine:
    """A model's engine. Unless it is told otherwise, ONNX Runtime saturates without VNNI; our sessions tell it."""
    precision = "fp32" if label == FP32 else "int8"
    return open_engine(engine, path, precision, float_model=float_model, exact=label not in PEERS)


def failure(engine: str, path: Path, float_model: Path, inputs: Named) -> str:
    """Why an engine does not run a peer's model, empty if it does: OpenVINO 2026.4 crashes on quantize_static's
    DenseNet, and ONNX Runtime 1.32 refuses NNCF's EfficientNetV2."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        try:
            other.submit(_run_once, engine, path, float_model, inputs).result()
        except BrokenProcessPool:
            return "crashes the engine"
        except SbsError:
            return "is refused by the engine"
    return ""


def _run_once(engine: str, path: Path, float_model: Path, inputs: Named) -> None:
    with opened_as(STATIC, engine, path, float_model) as opened:
        opened.run(_first(inputs))


def _first(inputs: Named) -> Named:
    return {name: array[:1] for name, array in inputs.items()}


def ratios(times: dict[str, Measurement]) -> Row:
    """Speed over FP32 of ours, of all in 8 bits and of the best peer; and of ours over the fastest of them all."""
    over_fp32 = {label: speedup(times[FP32], one) for label, one in times.items()}
    best = max((peer for peer in PEERS if peer in times), default=FP32, key=lambda peer: over_fp32[peer][0])
    others = {label: speedup(one, times[OURS]) for label, one in times.items() if label != OURS}
    fastest = min(others, key=lambda label: others[label][0])
    return {
        "over_fp32": over_fp32,
        "best_peer": best,
        "fastest": fastest,
        "over_fastest": others[fastest][0],
        "over_fastest_interval": others[fastest][1:],
    }


def error(engine: Engine, path: Path, inputs: Named) -> float:
    """Root mean square difference of the only output to that of a graph computed node by node, in their deviation."""
    with OnnxRuntimeEngine(path, SessionSettings(precision="fp32", optimization="none")) as plain:
        ((name, expected),) = plain.run(inputs).items()
    return float(np.sqrt(np.mean(np.square(engine.run(inputs)[name] - expected))) / expected.std())


def page(networks: list[Row]) -> list[str]:
    """Lines of Markdown: a table for every engine and instruction set."""
    lines: list[str] = []
    for engine, isa in sorted({(row["engine"], one["isa"]) for one in networks for row in one["engines"]}):
        found = [
            (one, row) for one in networks for row in one["engines"] if (row["engine"], one["isa"]) == (engine, isa)
        ]
        first = found[0][0]
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        lines += [f"## {engine}{f', {isa} at most' if isa else ''}", ""]
        lines += [f"{first['machine']} · {versions} · {first['protocol']['rounds']} rounds", ""]
        header = f"network | FP32 ms | ours | {ALL} | best peer | ours over the fastest of the others"
        lines += [*table(header, [cells(one, row) for one, row in found]), ""]
        untimed = [f"{peer}'s {one['network']} {why}" for one, row in found for peer, why in row["failed"].items()]
        lines += [f"Without a time: {', '.join(untimed)}.", ""] if untimed else []
        missed = [one["network"] for one, row in found if row["over_fastest"] < GOAL]
        lines += [f"Below {GOAL}x of the fastest: {', '.join(missed) or 'none'}.", ""]
    return lines


def cells(network: Row, row: Row) -> list[str]:
    """One line of a table: speeds over FP32, then ours over the fastest; ~ where rounds disagree."""

    def over_fp32(label: str) -> str:
        return f"{'~' if row['models'][label]['apart'] else ''}{row['over_fp32'][label][0]:.2f}x"

    low, high = row["over_fastest_interval"]
    return [
        network["network"],
        f"{row['models'][FP32]['quickest_ms']:.1f}",
        over_fp32(OURS),
        over_fp32(ALL),
        f"{over_fp32(row['best_peer'])} ({row['best_peer']})",
        f"{row['over_fastest']:.2f}x ({low:.2f}–{high:.2f}, {row['fastest']})",
    ]


if __name__ == "__main__":
    sys.exit(main())
