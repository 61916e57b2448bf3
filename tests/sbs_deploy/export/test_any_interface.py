"""Networks with several inputs and outputs, as ONNX files that ONNX Runtime runs with other numbers of samples."""

import numpy as np
import pytest
import torch
from torch import nn

from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.float_onnx import onnx_from_module
from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from tests.sbs_deploy.export.any_network import check, exported, outputs_of, quantized_network
from tests.sbs_train.network.test_any_interface import TwoInputs, Words, example


@pytest.mark.parametrize("samples", [1, 3])
def test_a_float_network_with_two_inputs_and_three_outputs(samples):
    model = TwoInputs().eval()
    check(onnx_from_module(model, example()), model, example(samples).random(1))


def test_a_network_that_takes_integers():
    model = Words().eval()
    graph = onnx_from_module(model, Example.of(torch.zeros(2, 6, dtype=torch.int64)))
    check(graph, model, Example.of(torch.arange(18).view(3, 6)))


def test_axes_that_vary_where_the_user_says_so():
    model = TwoInputs().eval()
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}}
    graph = onnx_from_module(model, example(), dynamic=dynamic)
    larger = Example((torch.zeros(2, 3, 8, 10),), {"vector": torch.zeros(2, 5)}).random(2)
    check(graph, model, larger)
    with pytest.raises(SbsError, match="no input picture"):
        onnx_from_module(model, example(), dynamic={"picture": {0: "batch"}})


@pytest.mark.parametrize("dialect", [ORT, TRT], ids=lambda one: one.name)
def test_a_compressed_network_with_two_inputs(dialect):
    torch.manual_seed(0)
    network = quantized_network(TwoInputs(), example())
    kept = {group.id: list(range(0, group.size, 2)) for group in network.topology.groups if group.prunable}
    assert list(kept) == ["inner", "vector", "wide"]
    model = exported(network, dialect, kept)
    # A value half-way between two codes may round either way.
    check(model, network.model, example(3).random(3), tolerance=2e-2)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        y = self.fc(x)
        return y, y


class Passes(Twice):
    def forward(self, x):
        return {"x": x, "fc.weight": self.fc(x)}


def test_one_tensor_may_be_returned_twice():
    model = Twice().eval()
    check(onnx_from_module(model, Example.of(torch.ones(2, 3))), model, Example.of(torch.ones(3, 3)))


def test_names_of_outputs_are_free_of_those_of_inputs_and_weights():
    model = Passes().eval()
    found = outputs_of(onnx_from_module(model, Example.of(torch.ones(2, 3))), {"x": torch.ones(4, 3)})
    assert list(found) == ["x_2", "fc.weight_2"] and np.array_equal(found["x_2"], np.ones((4, 3)))
