"""Links between nodes and tensors, and names as ONNX Runtime gives them back."""

import pytest

from sbs_deploy.backends.onnxruntime.profile import own_name
from sbs_deploy.graph.links import makers_of
from tests.sbs_deploy.graphs import float_model


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("conv1", "conv1"),
        ("conv1_token_12", "conv1"),
        ("conv1.weight_s8_2_u8", "conv1.weight"),
        ("conv1.weight_s8_2_u8_token_3", "conv1.weight"),
        ("conv1_out_nchwc_out0", "conv1_out"),
        ("token_1.conv", "token_1.conv"),
    ],
)
def test_own_names(given: str, own: str) -> None:
    assert own_name(given) == own


def test_every_tensor_that_is_computed_has_its_maker() -> None:
    model = float_model()
    makers = makers_of(model)
    assert makers == makers_of(model.graph)
    assert all(name in node.output for name, node in makers.items())
    assert set(makers) == {output for node in model.graph.node for output in node.output}
