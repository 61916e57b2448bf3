"""The built-in networks: shapes, parameters, and seeds."""

import pytest
import torch

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model


def spec(name="resnet20", width=16, classes=10):
    return ModelSpec(name=name, width=width, num_classes=classes)


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85)])
def test_parameters_match_the_publication(name, millions):
    # He et al., CVPR 2016, table 6 (option A has no shortcut weights: ours are a little above).
    parameters = sum(p.numel() for p in build_model(spec(name), 3).parameters())
    assert millions * 1e6 < parameters < millions * 1e6 * 1.05


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_any_image_size(size):
    assert build_model(spec(width=8, classes=7), 1)(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_the_seed_decides_the_weights_and_leaves_torch_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (build_model(spec(), 1, seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SbsError, match="resnet20, resnet56"):
        build_model(spec("resnet21"), 3)
