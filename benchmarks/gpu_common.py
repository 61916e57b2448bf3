"""What the engine parts of gpu.sh share: arguments, models, interleaved timing."""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
import numpy.typing as npt

from sbs_deploy.backends.base import Engine
from sbs_deploy.measure.protocol import Protocol, measure, speedup
from sbs_train.contract.rundir import open_run

Images = npt.NDArray[np.float32]


def run_part(description: str, part: Callable[[Path, Path, Images, Path], dict[str, Any]]) -> int:
    """Parse --out, --run and --batch, call `part(float model, quantized model, images, scratch)`, write its result."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="a run with exported ONNX files; a random network unless given")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.run is None:
            float_model, quantized_model = gpu_models.write_models(Path(scratch))
            shape: tuple[int, ...] = gpu_models.IMAGE
        else:
            run = open_run(arguments.run)
            float_model, quantized_model = run.model_slim, run.model_trt
            shape = np.load(run.golden)["inputs"].shape[1:]
        images = np.random.default_rng(0).standard_normal((arguments.batch, *shape)).astype(np.float32)
        result = part(float_model, quantized_model, images, Path(scratch))
    arguments.out.write_text(json.dumps(result | {"batch": arguments.batch, "image": list(shape)}))
    print(json.dumps(result))
    return 0


def timed(engines: Mapping[str, Engine], images: Images, control: str) -> dict[str, Any]:
    """Interleaved latency of each engine, its speed-up over `control`, and where its clock stands."""
    times = measure({name: _contestant(engine, images) for name, engine in engines.items()}, Protocol())
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
            "speedup_vs_control": speedup(times[control], measurement)[0] if control in times else None,
        }
    return rows


def agreement(logits: Images, reference: Images) -> dict[str, float]:
    """Largest difference, and share of images with the same first class."""
    return {
        "max_abs_diff": float(np.abs(logits - reference).max()),
        "top1_agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
    }


def _contestant(engine: Engine, images: Images) -> Callable[[], float]:
    return lambda: engine.latency_ms(images)
