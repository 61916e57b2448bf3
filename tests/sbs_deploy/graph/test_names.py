"""Layers by the names of their weights."""

import pytest

from sbs_deploy.graph.names import layer_of, owner_of


@pytest.mark.parametrize(
    ("weights", "layer", "owner"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1", "layer1.0.conv1"),
        ("head.weight_fp16", "head", "head"),
        ("onnx::Conv_12", None, "onnx::Conv_12"),
        ("onnx::Conv_12_fp16", None, "onnx::Conv_12"),
    ],
)
def test_weights_tell_their_layer(weights: str, layer: str | None, owner: str) -> None:
    assert (layer_of(weights), owner_of(weights)) == (layer, owner)
