"""The built-in networks: shapes, parameters, and seeds."""

import pytest
import torch
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model


def spec(name="resnet20", width=16, classes=10):
    return ModelSpec(name=name, arguments={"width": width, "num_classes": classes})


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85)])
def test_parameters_match_the_publication(name, millions):
    # He et al., CVPR 2016, table 6 (option A has no shortcut weights: ours are a little above).
    parameters = sum(p.numel() for p in build_model(spec(name), 3).parameters())
    assert millions * 1e6 < parameters < millions * 1e6 * 1.05


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_any_image_size(name, size):
    assert build_model(spec(name, width=8, classes=7), 1)(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_mobilenetv2_of_full_width_is_torchvisions_but_for_strides():
    import torchvision

    ours, theirs = build_model(spec("mobilenetv2", 32, 1000), 3), torchvision.models.mobilenet_v2()
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == 3_504_872  # 3.4 M in table 4 of the paper
    strided = {
        name: module.stride
        for name, module in ours.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1)
    }
    assert strided == {f"features.{block}.conv.1.0": (2, 2) for block in (4, 7, 14)}


def test_mobilenetv2_rounds_channels_as_the_reference_does():
    model = build_model(spec("mobilenetv2", 16), 1)
    assert model.features[0][0].weight.shape == (16, 1, 3, 3)
    # Multiplier 0.5 of 16, 24, 32, 64, 96, 160, 320: to multiples of 8, never below nine tenths; the head stays.
    channels = [block.out_channels for block in model.features[1:-1]]
    assert list(dict.fromkeys(channels)) == [8, 16, 32, 48, 80, 160]
    assert model.classifier[1].in_features == 1280
    assert isinstance(model.features[0][2], nn.ReLU6)


@pytest.mark.parametrize("width", [1, 4, 20, 30])
def test_mobilenetv2_refuses_a_width_it_would_round(width):
    with pytest.raises(SbsError, match=f"--width {width}: mobilenetv2 needs a multiple of 8"):
        build_model(spec("mobilenetv2", width), 3)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_the_seed_decides_the_weights_and_leaves_torch_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = ([*build_model(spec(name), 1, seed).parameters()] for seed in (1, 1, 2))
    assert all(map(torch.equal, first, second)) and not torch.equal(first[0], third[0])
    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SbsError, match="resnet20, resnet56, mobilenetv2"):
        build_model(spec("resnet21"), 3)
