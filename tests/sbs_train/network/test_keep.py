"""Which layers a pattern of `keep` names."""

import pytest
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.network.keep import kept_layers


def network():
    head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "head": head})


@pytest.mark.parametrize(
    ("keep", "found"),
    [
        ({}, {}),
        ({"head.*": "float"}, {"head.0": 32, "head.2": 32}),
        ({"*": 8, "stem": "float"}, {"stem": 32, "head.0": 8, "head.2": 8}),
        ({"head.[02]": 4}, {"head.0": 4, "head.2": 4}),
    ],
)
def test_patterns(keep, found):
    assert kept_layers(network(), keep) == found


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"heads.*": "float"}, "near are .*head"),
        ({"norm": "float"}, "no layer matches norm"),  # it is no layer that is quantized
        ({"stem": True}, "number of bits"),
        ({"stem": "8"}, "number of bits"),
    ],
)
def test_wrong_ones(keep, words):
    with pytest.raises(SbsError, match=words):
        kept_layers(network(), keep)
