"""Axes of channels of a graph, and the graph with fewer of them, run by ONNX Runtime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sbs_deploy.measure.devices.channels import axes_of, shapes_of, slimmed, with_shapes
from sbs_deploy.measure.devices.networks import network_of
from tests.sbs_deploy.measure.devices.networks import CLASSES, SIZE, residual_graph, residual_network

ort = pytest.importorskip("onnxruntime")
NETWORK = residual_network()
AXES = NETWORK.axes


def axis_of(name: str) -> int:
    return AXES.root(next(layer.channels_out for layer in AXES.layers if layer.name == name))


def test_layers_and_their_channels() -> None:
    found = {layer.name: (layer.kind, NETWORK.ends(layer, {}), layer.movable) for layer in AXES.layers}
    assert found == {
        "stem": ("conv", (3, 16), True),
        "expand": ("conv", (16, 32), True),
        "depthwise": ("depthwise", (32, 32), True),
        "project": ("conv", (32, 16), True),
        "branch": ("conv", (16, 8), True),
        "head": ("linear", (24, CLASSES), True),
    }


def test_additions_and_depthwise_join_and_the_ends_stay() -> None:
    assert axis_of("stem") == axis_of("project")
    assert axis_of("expand") == axis_of("depthwise")
    assert sorted(AXES.open) == sorted({axis_of("stem"), axis_of("expand"), axis_of("branch")})


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 16), st.integers(1, 32), st.integers(1, 8))
def test_a_slim_graph_runs_and_has_the_channels_that_were_asked_for(stem: int, expand: int, branch: int) -> None:
    kept = {axis_of("stem"): stem, axis_of("expand"): expand, axis_of("branch"): branch}
    model = slimmed(NETWORK.model, AXES, kept)
    onnx.checker.check_model(model, full_check=True)
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert weights["project.weight"] == (stem, expand, 1, 1)
    assert weights["depthwise.weight"] == (expand, 1, 3, 3)
    assert weights["head.weight"] == (CLASSES, (stem + branch) * 16)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": np.zeros((2, 3, SIZE, SIZE), np.float32)})
    assert logits.shape == (2, CLASSES)


def test_the_whole_graph_is_unchanged() -> None:
    image = {"input": np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)}
    whole, same = (
        ort.InferenceSession(m.SerializeToString()).run(None, image)[0]
        for m in (residual_graph(), slimmed(NETWORK.model, AXES, {}))
    )
    np.testing.assert_array_equal(whole, same)


def test_what_is_not_understood_keeps_its_channels() -> None:
    graph = residual_graph()
    for node in graph.graph.node:
        if node.name == "concat":
            transposed = helper.make_node("Transpose", ["y"], ["t"], "turned", perm=[0, 2, 3, 1])
            back = helper.make_node("Transpose", ["t"], ["tt"], "back", perm=[0, 3, 1, 2])
            node.input[0] = "tt"
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    place = [node.name for node in nodes].index("concat")
    graph.graph.node.extend([*nodes[:place], transposed, back, *nodes[place:]])
    axes = axes_of(with_shapes(graph))
    fixed = {layer.name for layer in axes.layers if axes.root(layer.channels_out) not in axes.open}
    assert fixed == {"stem", "project", "branch", "head"}, (
        "the residual axis is turned, and its neighbour put beside it"
    )
    assert shapes_of(slimmed(with_shapes(graph), axes, dict.fromkeys(axes.open, 4)))["logits"][1] == CLASSES


def test_grouped_convolutions_keep_their_channels() -> None:
    graph = residual_graph()
    for node in graph.graph.node:
        if node.name == "expand":
            node.attribute.append(helper.make_attribute("group", 2))
    for tensor in graph.graph.initializer:
        if tensor.name == "expand.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((32, 8, 1, 1), np.float32), tensor.name))
    network = network_of("grouped", graph)
    assert {layer.name for layer in network.axes.layers if not layer.movable} == {"expand"}
    assert len(network.axes.open) == 1, "only the branch is left"
