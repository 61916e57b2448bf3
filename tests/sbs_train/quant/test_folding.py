"""What BatchNorm makes of a layer, against running it; that devices are kept."""

import torch
from torch import nn

from sbs_train.contract.plan import ModelSpec
from sbs_train.example import Example
from sbs_train.inputs.models import build_model
from sbs_train.quant.folding import folded_affine, paired_batchnorms


def test_affine_equals_layer_and_batchnorm():
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    expected = norm.eval()(layer(x))
    factor_O, bias_O = folded_affine(layer, norm)
    linear = nn.functional.conv2d(x, layer.weight).double()
    found = linear * factor_O.view(1, -1, 1, 1) + bias_O.view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)


def test_everything_stays_on_the_device_of_the_layer():
    layer, norm = nn.Conv2d(3, 5, 3, bias=False, device="meta"), nn.BatchNorm2d(5, device="meta")
    for norm_or_none in (norm, None):
        assert {value.device.type for value in folded_affine(layer, norm_or_none)} == {"meta"}


def test_pairs_follow_the_tensors():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)
    )
    assert paired_batchnorms(model.eval(), Example.of(torch.zeros(1, 3, 4, 4))) == {"0": "1"}


def test_every_convolution_of_mobilenetv2_has_a_batchnorm():
    # Its ReLU6 works in place on what BatchNorm wrote.
    model = build_model(ModelSpec(name="mobilenetv2", arguments={"width": 8, "num_classes": 10}), 1).eval()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    pairs = paired_batchnorms(model, Example.of(torch.zeros(1, 1, 8, 8)))
    assert list(pairs) == convolutions
    assert pairs["features.2.conv.1.0"] == "features.2.conv.1.1" and pairs["features.2.conv.2"] == "features.2.conv.3"
