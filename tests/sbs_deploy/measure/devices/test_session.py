"""Node times as times of steps, and the layer that each tensor comes from."""

from functools import partial

import pytest

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.backends.spec import ONNXRUNTIME, OPENVINO, Backend
from sbs_deploy.graph.arrays import noise
from sbs_deploy.measure.devices.networks import Variant
from sbs_deploy.measure.devices.session import BEHIND, Setup, opened, owners_of, step_times, visit
from tests.sbs_deploy.measure.devices.networks import residual_graph, residual_network

NETWORK = residual_network()
DENSE = Variant(counts={})
GRAPH = NETWORK.graph(DENSE, ONNXRUNTIME)


def node(name: str, kind: str, ms: float, *nodes: str, quickest: float | None = None) -> NodeTime:
    return NodeTime(name=name, kind=kind, ms=ms, quickest_ms=quickest, nodes=nodes or (name,), tensors=nodes or (name,))


def test_layers_and_what_runs_behind_them() -> None:
    times = [
        node("stem.input_quantized", "QuantizeLinear", 1.0),
        node("stem/WithoutBiases", "Convolution", 2.0, "stem", "relu_0", quickest=1.5),
        node("some_reorder", "Reorder", 0.5, "of its own"),
        node("expand.input_clipped", "Clip", 0.25),
        node("expand", "QLinearConv", 4.0),
        node("add", "QLinearAdd", 0.125),
        node("head.weight_dequantized", "DequantizeLinear", 8.0),
    ]
    assert step_times(times, GRAPH, NETWORK.layers) == {
        BEHIND: {"ms": 1.0, "nodes": 1},
        "stem": {"ms": 1.5, "nodes": 1},
        f"{BEHIND}stem": {"ms": 0.75, "nodes": 2},
        "expand": {"ms": 4.0, "nodes": 1},
        f"{BEHIND}project": {"ms": 0.125, "nodes": 1},
        "head": {"ms": 8.0, "nodes": 1},
    }


@pytest.mark.parametrize("backend", [ONNXRUNTIME, OPENVINO], ids=lambda backend: backend.name)
def test_an_engine_tells_the_time_of_every_layer(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend.module)
    for name, value in (("ROUNDS", 2), ("BLOCK_MS", 1.0), ("RUNS", (2, 3))):
        monkeypatch.setattr(f"sbs_deploy.measure.devices.session.{name}", value)
    setup, graph = Setup(backend=backend, threads=1, batch=2), NETWORK.graph(DENSE, backend)
    by_step = partial(step_times, model=graph, layers=NETWORK.layers)
    with opened(graph, "int8", setup) as engine:
        found = visit(engine, engine, noise(engine.inputs, 2), by_step)
    assert found["ms"] > 0 and found["reference_ms"] > 0
    steps = found["steps"]
    assert set(NETWORK.layers) <= set(steps)
    assert all(step["ms"] >= 0 and step["nodes"] > 0 for step in steps.values())
    assert sum(step["ms"] for step in steps.values()) > 0
    assert {name for name in steps if name not in NETWORK.layers} <= {BEHIND + name for name in ("", *NETWORK.layers)}


def test_every_tensor_belongs_to_the_last_layer_before_it() -> None:
    owners = owners_of(residual_graph())
    assert owners["x"] == "stem" and owners["a"] == owners["y"] == "project" and owners["f"] == "branch"
    assert owners["input"] is None and "stem.weight" not in owners
