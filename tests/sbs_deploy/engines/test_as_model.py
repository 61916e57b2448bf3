"""An engine called like the network: the structure of the answer, the order of the inputs, parts of a batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbs_deploy.engines.as_model import EngineModel, answer_of
from sbs_deploy.graph.arrays import ArraySpec
from sbs_train.contract.errors import SbsError
from sbs_train.example import named_outputs

TENSORS = [torch.tensor([float(number)]) for number in range(4)]
ANSWERS = [
    TENSORS[0],
    (TENSORS[0], TENSORS[1]),
    (TENSORS[0], (TENSORS[1], {"left": TENSORS[2], "right": TENSORS[3]})),
    {"out": TENSORS[0]},
    {"boxes": (TENSORS[0], TENSORS[1]), "masks": {"small": TENSORS[2]}},
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_answer_has_the_networks_structure(answer):
    assert answer_of(named_outputs(answer)) == answer


def engine(outputs=("output",), largest=3):
    """Adds its two inputs; refuses more than `largest` samples."""

    def run(inputs):
        assert len(inputs["x"]) <= largest
        return {name: inputs["x"] + 10 * inputs["y"] for name in outputs}

    specs = [ArraySpec(name=name, dtype="float32", shape=("batch", 1)) for name in ("x", "y")]
    given = [ArraySpec(name=name, dtype="float32", shape=("batch", 1)) for name in outputs]
    return SimpleNamespace(name="an engine", inputs=specs, outputs=given, run=run)


def test_inputs_go_by_position_or_by_name_and_large_batches_in_parts():
    x, y = torch.arange(7.0)[:, None], torch.ones(7, 1)
    model = EngineModel(engine(), 3)
    for found in (model(x, y), model(y=y, x=x), model((x, y)), model(x, y=y), model(y, x=x)):
        np.testing.assert_array_equal(found.numpy(), (x + 10).numpy())
    with pytest.raises(SbsError, match="takes x, y"):
        model(x)
    assert EngineModel(engine(largest=7))(x, y).shape == (7, 1)


def test_the_only_output_of_an_old_plan_is_the_answer():
    x = torch.zeros(2, 1)
    assert set(EngineModel(engine(("logits",)), 3)(x, x)) == {"logits"}
    assert isinstance(EngineModel(engine(("logits",)), 3, tensor=True)(x, x), torch.Tensor)
