"""Float networks by name. Built in: the CIFAR ResNets of He et al., CVPR 2016, section 4.2 (projection shortcuts)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec


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


Builder = Callable[[int, int, int], nn.Module]
"""(width, input channels, classes) to a network."""

BUILDERS: dict[str, Builder] = {
    "resnet20": partial(CifarResNet, 3),
    "resnet56": partial(CifarResNet, 9),
}


def build_model(spec: ModelSpec, channels_in: int, seed: int = 0) -> nn.Module:
    """The float network a plan or a recipe names, its weights drawn from `seed`.

    Raises:
        SbsError: no network has that name.
    """
    if spec.name not in BUILDERS:
        raise SbsError(f"unknown model {spec.name}; choose one of {', '.join(BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[spec.name](spec.width, channels_in, spec.num_classes)
