"""Float networks by name: built-in ones, and those of `zoo.py`.

Built in are the CIFAR ResNets of He et al., CVPR 2016, section 4.2 (projection shortcuts), and a MobileNetV2 for images
of that size.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.example import Example
from sbs_train.inputs.tensors import check_model
from sbs_train.inputs.zoo import foreign_model, is_foreign


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; x_NCHW in and out."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x_NCHW))


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of `width`, 2 `width` and 4 `width` channels; x_NCHW to logits (N, classes)."""

    def __init__(self, blocks: int, width: int, channels_in: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.layer3(self.layer2(self.layer1(y)))
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


# t, c, n, s of table 2 in arXiv 1801.04381: expansion, channels, blocks, stride of the first block.
_MOBILENET_V2_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],  # stride 2 at 224x224
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
_MOBILENET_V2_WIDTH = 32
"""Channels of the stem at multiplier 1.0."""
_MOBILENET_V2_ROUND = 8


def mobilenet_v2(width: int, channels_in: int, num_classes: int) -> nn.Module:
    """MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381) for small images, from torchvision's blocks.

    As usual for CIFAR (github.com/kuangliu/pytorch-cifar), the stem and the first stage of stride 2 keep the image's
    size, so the image shrinks 8 times, not 32 times. Unlike that code, and as in the paper, activations are ReLU6 and
    a block that changes the channels has no shortcut. There is no dropout.

    Raises:
        SbsError: `width` is not a multiple of 8, to which the reference code rounds all channels.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    if width % _MOBILENET_V2_ROUND:
        raise SbsError(f"--width {width}: mobilenetv2 needs a multiple of {_MOBILENET_V2_ROUND}, such as 16 or 32")
    network: nn.Module = MobileNetV2(
        num_classes,
        width_mult=width / _MOBILENET_V2_WIDTH,
        inverted_residual_setting=_MOBILENET_V2_STAGES,
        round_nearest=_MOBILENET_V2_ROUND,
        dropout=0.0,
    )
    stem = nn.Conv2d(channels_in, width, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    network.set_submodule("features.0.0", stem)
    return network


Builder = Callable[[int, int, int], nn.Module]
"""A function from (width, input channels, classes) to a network."""

BUILDERS: dict[str, Builder] = {
    "resnet20": partial(CifarResNet, 3),
    "resnet56": partial(CifarResNet, 9),
    "mobilenetv2": mobilenet_v2,
}


def build_model(spec: ModelSpec, channels_in: int, seed: int = 0, *, size: tuple[int, int] | None = None) -> nn.Module:
    """Build the float network that a plan or a recipe names, with weights from `seed` or of the user's function.

    `size` is the images' height and width, which some networks need. Nothing is downloaded.

    Raises:
        SbsError: the name or the width is unknown, or the network's own weights are not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_foreign(spec.name):
            # Plans of version 1 have the width, which only built-in networks take, for all.
            arguments = {name: value for name, value in spec.arguments.items() if name != "width"}
            model = foreign_model(spec.name, channels_in, arguments, size)
            check_model(model, spec.name)
            return model
        if spec.name not in BUILDERS:
            raise SbsError(
                f"unknown model {spec.name}; choose one of {', '.join(BUILDERS)}, torchvision:NAME, timm:NAME "
                f"or path/to/file.py:factory"
            )
        width = _argument(spec, "width")
        try:
            return BUILDERS[spec.name](width, channels_in, _argument(spec, "num_classes"))
        except (RuntimeError, MemoryError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            raise SbsError(f"{spec.name} of width {width} cannot be built ({reason}); choose a smaller one") from error


def _argument(spec: ModelSpec, name: str) -> int:
    if name not in spec.arguments:
        raise SbsError(f"the plan of {spec.name} lacks the model's {name}; build the model in your own code")
    return spec.arguments[name]


def image_example(input: InputSpec) -> Example:
    """Two images of zeros."""
    return Example.of(torch.zeros(2, input.channels, input.height, input.width))


def usual_classes(name: str) -> int:
    """Classes of a model by name where nothing says otherwise: 10 for built-in ones, 1000 (ImageNet) for others."""
    return 1000 if is_foreign(name) else 10


def untrained(name: str, image: tuple[int, int, int], classes: int | None, width: int) -> tuple[nn.Module, InputSpec]:
    """A model by name with random weights, and its input of `image` (channels, height and width).

    Args:
        classes: 1000 for models from elsewhere, 10 for built-in ones, unless given.
        width: channels of the first stage of the built-in ones.

    Raises:
        SbsError: a number is not above 0; or as `build_model`.
    """
    channels, height, columns = image
    if classes is None:
        classes = usual_classes(name)
    if min(*image, classes, width) < 1:
        raise SbsError("--input, --classes and --width must be above 0")
    spec = ModelSpec(name=name, arguments={"width": width, "num_classes": classes})
    model = build_model(spec, channels, size=(height, columns))
    return model, InputSpec(
        channels=channels, height=height, width=columns, mean=[0.0] * channels, std=[1.0] * channels
    )
