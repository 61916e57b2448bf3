"""MobileNetV2 of fewer than 8 channels in the stem, which `--width` does not offer: a narrower network to compare with.

sbs-train --model benchmarks/narrow_mobilenet.py:width_6 --data fashion-mnist
"""

from functools import partial

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from sbs_train.inputs.models import _MOBILENET_V2_STAGES, _MOBILENET_V2_WIDTH


def _mobilenet(width: int, num_classes: int) -> nn.Module:
    """The network of `--model mobilenetv2` for grey images, with channels in multiples of 2 instead of 8."""
    network: nn.Module = MobileNetV2(
        num_classes,
        width_mult=width / _MOBILENET_V2_WIDTH,
        inverted_residual_setting=_MOBILENET_V2_STAGES,
        round_nearest=2,
        dropout=0.0,
    )
    first = network.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    network.set_submodule("features.0.0", nn.Conv2d(1, first.out_channels, 3, 1, 1, bias=False))
    return network


width_4, width_5, width_6, width_7 = (partial(_mobilenet, width) for width in (4, 5, 6, 7))
