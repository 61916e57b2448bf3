"""Arguments of `Search` of the wrong kind are one error, before anything happens to the model."""

import itertools

import pytest
import torch
from torch import nn

from sbs_train import Search, SearchConfig
from sbs_train.contract.errors import SbsError

X = torch.randn(4, 3, 8, 8)


def model():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    )


def loader_that_breaks():
    yield X
    raise KeyError("of the loader")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", lambda x: x),
        ("target", 30),
        ("target", None),
        ("steps", 8.5),
        ("steps", "10"),
        ("steps", True),
        ("steps", 7),
        ("mode", "both"),
        ("grid", "int4"),
        ("keep", ["0"]),
        ("options", {"group_size": 2}),
        ("options", SearchConfig(metric="error")),
        ("calibration", 5),
        ("calibration", []),
        ("calibration", itertools.repeat(X)),
        ("calibration", [[X, X]]),
        ("calibration", ["x"]),
    ],
)
def test_an_argument_of_another_kind_is_refused(name, value):
    given = {"model": model(), "target": "16x", "steps": 8, "calibration": [X]}
    kinds = [type(module) for module in given["model"].modules()]
    with pytest.raises(SbsError, match=name):
        Search(**{"example_inputs": X, **given, name: value})
    assert [type(module) for module in given["model"].modules()] == kinds


def test_an_error_of_the_loader_is_its_own():
    with pytest.raises(KeyError, match="of the loader"):
        Search(model(), X, target="16x", steps=8, calibration=loader_that_breaks())
