"""One visit to one variant: opened on the backend, warmed up, timed as a whole, then by the engine's own profiler."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx

from sbs_deploy.backends.base import Engine, ProfiledEngine
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine, open_engine, runtime_of
from sbs_deploy.backends.spec import Backend, Precision
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.measure.devices.steps import Spent, step_times
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

    backend: Backend
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
        SbsError: the backend refuses the graph, has no device here, or has no times of layers.
    """
    inputs = images(graph, setup.batch)
    with opened(graph, "int8", setup) as engine:
        if not isinstance(engine, ProfiledEngine):
            raise SbsError(f"{setup.backend.label} has no times of layers")
        _inferences(engine, inputs, WARM_UP_RUNS, WARM_UP_MS)
        whole_ms = min(_inferences(engine, inputs, RUNS[0], TIMED_MS))
        runs = int(np.clip(TIMED_MS / max(whole_ms, 1e-3), *RUNS))
        return {"whole_ms": whole_ms, "steps": step_times(engine.node_times(inputs, runs), graph, layers)}


@contextlib.contextmanager
def opened(graph: onnx.ModelProto, precision: Precision, setup: Setup) -> Iterator[Engine]:
    """The graph on the backend; ONNX Runtime and OpenVINO take it as it is, TensorRT builds an engine of it."""
    with tempfile.TemporaryDirectory() as folder:
        path, backend = Path(folder) / "model.onnx", setup.backend
        save_onnx(graph, path)
        build = runtime_of(backend).suffix == "engine"
        if build:
            profile = BatchProfile(opt=setup.batch, max=setup.batch)
            request = Request(backend=backend, precision=precision, profile=profile)
            path = build_engine(path, Path(folder) / "model.engine", request, made_from={}).path
        with open_engine(path, backend, precision, setup.threads, built=build) as engine:
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
