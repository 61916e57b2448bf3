"""Engines on this GPU, built, timed and compared with the CPU's answers: a part of gpu.sh.

    python benchmarks/gpu_engines.py onnxruntime --out onnxruntime.json      ONNX Runtime's CUDA provider
    python benchmarks/gpu_engines.py tensorrt_rtx --out tensorrt_rtx.json    TensorRT-RTX, built ahead of time

With `--run DIR` the models are those of an exported run; else they are a random stack of convolutions.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
import onnx

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.onnxruntime.providers import CUDA
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import TENSORRT_RTX
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.graph.arrays import Named, input_specs, noise, samples_of
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.measure.protocol import Protocol, contestant, measure, speedup
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import open_run

PROFILED_RUNS = 50


def main() -> int:
    """Measure the engines of one backend and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", choices=("onnxruntime", "tensorrt_rtx"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="a run with exported ONNX files; a random network unless given")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    part = measure_cuda if args.backend == "onnxruntime" else measure_rtx
    with tempfile.TemporaryDirectory() as scratch:
        if args.run is None:
            float_model, quantized_model = gpu_models.write_models(Path(scratch))
            shape: tuple[int, ...] = gpu_models.IMAGE
        else:
            run = open_run(args.run)
            float_model, quantized_model = run.model_slim, run.model_trt
            shape = load_plan(run.plan).inputs[0].sample
        inputs = noise(input_specs(onnx.load(float_model)), args.batch)
        result = part(float_model, quantized_model, inputs, Path(scratch))
    args.out.write_text(json.dumps(result | {"batch": args.batch, "image": list(shape)}))
    print(json.dumps(result))
    return 0


def measure_cuda(float_model: Path, quantized_model: Path, inputs: Named, scratch: Path) -> dict[str, Any]:
    """Latency (host clock, transfers included) and agreement; the reason where CUDA is not in this onnxruntime."""
    engines: dict[str, Engine] = {}
    compared = {}
    with ExitStack() as stack:
        for name, model in (("fp32", float_model), ("int8 Q/DQ", quantized_model)):
            try:
                engine = stack.enter_context(OnnxRuntimeEngine(model, SessionSettings(precision=name, provider=CUDA)))
            except SbsError as error:
                return {"error": str(error)}
            compared[name] = agreement(engine.run(inputs), model, inputs)
            engines[name] = engine
        return {"latency": timed(engines, inputs), "against_cpu": compared}


def measure_rtx(float_model: Path, quantized_model: Path, inputs: Named, scratch: Path) -> dict[str, Any]:
    """Build details, latency (device events, no transfers), layers and agreement of INT8, FP16 and FP32 engines.

    Where the chip is refused, the reason in TensorRT's words.
    """
    engines: dict[str, TensorRTEngine] = {}
    builds, errors, compared = {}, {}, {}
    profile = BatchProfile(
        opt=samples_of(inputs, input_specs(onnx.load(float_model))),
        max=samples_of(inputs, input_specs(onnx.load(float_model))),
    )
    with ExitStack() as stack:
        for precision, source in (("fp32", float_model), ("fp16", float_model), ("int8", quantized_model)):
            try:
                legal = scratch / f"model.{precision}.onnx"
                graph = onnx.load(source)
                onnx.save(graph if precision == "fp32" else half_precision(graph), legal)
                request = Request(backend=TENSORRT_RTX, precision=precision, profile=profile)
                built = build_engine(legal, scratch / f"model.{precision}.tensorrt-rtx.engine", request, made_from={})
                builds[precision] = built.details
                engine = stack.enter_context(TensorRTEngine(built.path, backend=TENSORRT_RTX, precision=precision))
                found = engine.run(inputs)
            except SbsError as error:
                errors[precision] = str(error)
                continue
            compared[precision] = agreement(found, source, inputs)
            engines[precision] = engine
        latency = timed(engines, inputs) if engines else {}
        for name, engine in engines.items():
            latency[name] |= {"enqueue_ms": engine.last_enqueue_ms, "settings": engine.settings}
        layers = {
            name: [asdict(one) for one in engine.node_times(inputs, PROFILED_RUNS)] for name, engine in engines.items()
        }
    return {"builds": builds, "latency": latency, "layers": layers, "against_cpu": compared, "errors": errors}


def timed(engines: Mapping[str, Engine], inputs: Named) -> dict[str, Any]:
    """Interleaved latency of each engine, its speed-up over FP32, and where its clock stands."""
    times = measure({name: contestant(engine, inputs) for name, engine in engines.items()}, Protocol())
    rows = {}
    for name, measurement in times.items():
        latency = measurement.latency()
        rows[name] = {
            "device": engines[name].device,
            "latency_p50_ms": latency.p50_ms,
            "p90": latency.p90_ms,
            "p99": latency.p99_ms,
            "cov": latency.cov,
            "iterations": latency.iterations,
            "speedup_vs_control": speedup(times["fp32"], measurement)[0] if "fp32" in times else None,
        }
    return rows


def agreement(found: Named, model: Path, inputs: Named) -> dict[str, float]:
    """Largest difference from the same model on the CPU, and share of images with the same first class."""
    with OnnxRuntimeEngine(model, SessionSettings(precision="fp32", optimization="none")) as cpu:
        ((name, reference),) = cpu.run(inputs).items()
    return {
        "max_abs_diff": float(np.abs(found[name] - reference).max()),
        "top1_agreement": float((found[name].argmax(1) == reference.argmax(1)).mean()),
    }


if __name__ == "__main__":
    raise SystemExit(main())
