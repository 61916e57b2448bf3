"""One visit to one variant: opened on the target, warmed up, and timed by the engine's own profiler."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from sbs_deploy.bench.artifacts import open_engine
from sbs_deploy.bench.rebuild import build_engine
from sbs_deploy.engine.base import Engine, FloatArray, ProfiledEngine
from sbs_deploy.export.pipeline import save_onnx
from sbs_deploy.latency.steps import step_times
from sbs_deploy.targets import ONNXRUNTIME, OPENVINO, Precision, Target
from sbs_train.contract.errors import SbsError

WARM_UP_MS = 150.0
PROFILED_MS = 400.0
"""How long an engine is profiled, in about the milliseconds of its inferences."""
RUNS = (10, 100)
"""Fewest and most inferences of that."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all measurements of one device.json share."""

    target: Target
    threads: int
    batch: int


def visit(graph: onnx.ModelProto, layers: list[str], setup: Setup) -> dict[str, float]:
    """Milliseconds by step of a quantized graph.

    Raises:
        SbsError: the target refuses the graph, has no device here, or has no times of layers.
    """
    inputs = images(graph, setup.batch)
    with opened(graph, "int8", setup) as engine:
        if not isinstance(engine, ProfiledEngine):
            raise SbsError(f"{setup.target.label} has no times of layers")
        runs = int(np.clip(PROFILED_MS / max(_warm_up(engine, inputs), 1e-3), *RUNS))
        return step_times(engine.node_times(inputs, runs), graph, layers)


@contextlib.contextmanager
def opened(graph: onnx.ModelProto, precision: Precision, setup: Setup) -> Iterator[Engine]:
    """The graph on the target; ONNX Runtime and OpenVINO take it as it is, TensorRT builds an engine of it."""
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / "model.onnx", setup.target
        save_onnx(graph, path)
        straight = target.name in (ONNXRUNTIME.name, OPENVINO.name)
        if not straight:
            details = {"profile": {"opt": setup.batch, "max": setup.batch}}
            path = build_engine(path, Path(folder) / "model.engine", target, precision, details, {})
        with open_engine(path, target, precision, setup.threads, built=not straight) as engine:
            yield engine


def images(graph: onnx.ModelProto, batch: int) -> FloatArray:
    """Noise for a graph, (N, C, H, W)."""
    shape = [size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(0).standard_normal((batch, *shape), np.float32)


def _warm_up(engine: Engine, inputs: FloatArray) -> float:
    """Median milliseconds of some inferences, behind the first."""
    engine.latency_ms(inputs)
    began, times = time.perf_counter(), [engine.latency_ms(inputs) for _ in range(3)]
    while (time.perf_counter() - began) * 1e3 < WARM_UP_MS:
        times.append(engine.latency_ms(inputs))
    return float(np.median(times))
