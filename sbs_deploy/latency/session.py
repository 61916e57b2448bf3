"""One visit to one variant: opened on the target, warmed up, timed as a whole, then by the engine's own profiler."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx

from sbs_deploy.bench.artifacts import open_engine
from sbs_deploy.bench.rebuild import build_engine
from sbs_deploy.engine.base import Engine, FloatArray, ProfiledEngine
from sbs_deploy.export.pipeline import save_onnx
from sbs_deploy.latency.steps import Spent, step_times
from sbs_deploy.targets import ONNXRUNTIME, OPENVINO, Precision, Target
from sbs_train.contract.errors import SbsError

WARM_UP_MS = 150.0
TIMED_MS = 400.0
"""How long an engine is timed as a whole; and how long it is profiled, in about the milliseconds of its inferences."""
RUNS = (10, 100)
"""Fewest inferences of both, and most of those that are profiled."""
WARM_UP_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all measurements of one device.json share."""

    target: Target
    threads: int
    batch: int


class Visit(TypedDict):
    """What was measured of one variant; the cache holds it as JSON."""

    whole_ms: float
    """The quickest inference, with the profiler off."""
    steps: dict[str, Spent]


def visit(graph: onnx.ModelProto, layers: list[str], setup: Setup) -> Visit:
    """A quantized graph as a whole and by step.

    Raises:
        SbsError: the target refuses the graph, has no device here, or has no times of layers.
    """
    inputs = images(graph, setup.batch)
    with opened(graph, "int8", setup) as engine:
        if not isinstance(engine, ProfiledEngine):
            raise SbsError(f"{setup.target.label} has no times of layers")
        _inferences(engine, inputs, WARM_UP_RUNS, WARM_UP_MS)
        whole_ms = min(_inferences(engine, inputs, RUNS[0], TIMED_MS))
        runs = int(np.clip(TIMED_MS / max(whole_ms, 1e-3), *RUNS))
        return {"whole_ms": whole_ms, "steps": step_times(engine.node_times(inputs, runs), graph, layers)}


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


def _inferences(engine: Engine, inputs: FloatArray, fewest: int, least_ms: float) -> list[float]:
    """Milliseconds of each, for so long and so many."""
    began, times = time.perf_counter(), [engine.latency_ms(inputs) for _ in range(fewest)]
    while (time.perf_counter() - began) * 1e3 < least_ms:
        times.append(engine.latency_ms(inputs))
    return times
