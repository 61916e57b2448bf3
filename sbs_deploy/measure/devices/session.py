"""One visit to one variant: open it on the backend, time it as a whole beside a reference, then by the profiler.

The variant and the reference, the dense INT8 network, take turns in short blocks: whatever slows the machine slows
both, so their ratio is steady where their times are not.

The nodes between two layers differ with channels (a Reorder here, a fused addition there), so they are one step: all
nodes behind a layer, up to the next layers.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx

from sbs_deploy.backends.base import Engine, NodeTime
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import opened_graph
from sbs_deploy.backends.spec import Backend, Precision
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.links import makers_of, stored_behind
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.graph.names import QUANTIZED_OPS, owner_of
from sbs_deploy.measure.layer_times import layer_times
from sbs_deploy.measure.protocol import Measurement, Protocol, contestant, measure

ROUNDS = 12
BLOCK_MS = 12.0
"""Milliseconds of one turn; in every round the variant and the reference have one each."""
PROFILED_MS = 400.0
"""Milliseconds for which an engine is profiled, approximately."""
RUNS = (10, 100)
"""Fewest and most inferences of profiling."""

BEHIND = "behind "
"""Prefix of the name of a step that is no layer; the name of the layer before it follows."""
_OF_WEIGHTS = ("weight_dequantized", "bias_dequantized")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings of all measurements of one device.json."""

    backend: Backend
    threads: int
    batch: int


class Spent(TypedDict):
    """Time and nodes of one step, by the profiler."""

    ms: float
    nodes: int
    """Number of the engine's nodes in the step."""


Steps = dict[str, Spent]
"""Times by step."""


def visit(
    engine: Engine, reference: Engine, inputs: Named, steps: Callable[[list[NodeTime]], Steps] | None
) -> dict[str, Any]:
    """Measure an engine beside the reference, and by step.

    Returns `ms` and `reference_ms` of the quickest inferences, with the profiler off; and `steps`, empty if not wanted.

    Args:
        steps: makes steps of nodes; None where times by step are not wanted.

    Raises:
        SbsError: the backend has no times of layers.
    """
    turns = Protocol(
        warmup_ms=BLOCK_MS, warmup_max_ms=BLOCK_MS, rounds=ROUNDS, block_ms=BLOCK_MS, block_iterations=(1, 1000)
    )
    times = measure({"own": contestant(engine, inputs), "reference": contestant(reference, inputs)}, turns)
    ms, reference_ms = _least_ms(times["own"]), _least_ms(times["reference"])
    runs = int(np.clip(PROFILED_MS / max(ms, 1e-3), *RUNS))
    found = {} if steps is None else steps(engine.node_times(inputs, runs))
    return {"ms": ms, "reference_ms": reference_ms, "steps": found}


def step_times(nodes: Sequence[NodeTime], model: onnx.ModelProto, layers: Sequence[str]) -> Steps:
    """Times by step, `LAYER` or `behind LAYER`; `behind ` alone holds all nodes before the first layer.

    Args:
        nodes: the engine's nodes, in the order in which they run.
        model: the quantized graph that the engine executes.
        layers: names of the steps that are layers.
    """
    owners = owners_of(model)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    found: Steps = {}
    last = ""
    for node in nodes:
        (row,) = layer_times([node], model, layers)
        name = row.layer if row.category == "layer" else None
        weights_of = next((part for one in node.nodes if (part := _whose_weights(one)) in layers), None)
        if name is None and weights_of is not None:
            name = weights_of  # skip constants, which an engine may read at any time
        elif name is None:
            tensors = [outputs.get(one, one) for one in (*node.nodes, *node.tensors)]
            # A node without tensors of the graph belongs to the step before it.
            last = next((owners[tensor] or "" for tensor in tensors if tensor in owners), last)
            name = BEHIND + last
        else:
            last = name
        spent = found.setdefault(name, {"ms": 0.0, "nodes": 0})
        # The quickest time counts: other processes only slow an engine.
        spent["ms"] += node.ms if node.quickest_ms is None else node.quickest_ms
        spent["nodes"] += 1
    return found


def owners_of(model: onnx.ModelProto) -> dict[str, str | None]:
    """The last layer before each tensor, by tensor; None for tensors before the first layer.

    Tensors that depend on constants alone are left out.
    """
    layers = _layers(model)
    place = {value.name: -1 for value in model.graph.input}
    names = [layers.get(node.output[0]) for node in model.graph.node]
    for index, (node, name) in enumerate(zip(model.graph.node, names, strict=True)):
        before = [place[tensor] for tensor in node.input if tensor in place]
        if name is not None or before:
            place |= dict.fromkeys(node.output, index if name is not None else max(before))
    return {tensor: names[index] if index >= 0 else None for tensor, index in place.items()}


@contextlib.contextmanager
def opened(graph: onnx.ModelProto, precision: Precision, setup: Setup) -> Iterator[Engine]:
    """Open the graph on the backend, which runs the graph itself or an engine built from it."""
    profile = BatchProfile(opt=setup.batch, max=setup.batch)
    request = Request(backend=setup.backend, precision=precision, profile=profile)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(graph, path)
        with opened_graph(path, request, setup.threads) as engine:
            yield engine


def _least_ms(times: Measurement) -> float:
    """Milliseconds of the quickest inference, by CPU time if it is known: a process stands still while others run."""
    return min(map(min, times.cpu_rounds_ms or times.rounds_ms))


def _whose_weights(node: str) -> str:
    """Name of the layer whose weights a node dequantizes."""
    layer, _, part = node.rpartition(".")
    return layer if part in _OF_WEIGHTS else ""


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """Names of layers by their output tensor, in a float or a quantized graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = makers_of(model)
    found = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZED_OPS:
            weight = stored_behind(node.input[1], makers)
            if weight in constants:
                found[node.output[0]] = owner_of(weight)
    return found
