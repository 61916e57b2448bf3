"""What happens to a photograph on its way to the network: torchvision's v2 transforms, as ImageNet is trained on."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

Transform = Callable[[Image.Image], Tensor]
"""An RGB image to uint8 pixels_CHW of the network's input size."""


def train_transform(size: int) -> Transform:
    """A random part of the image (8 to 100 % of its area), resized to `size` pixels square and mirrored at random."""
    from torchvision.transforms import v2

    steps: Transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return steps


def eval_transform(size: int) -> Transform:
    """The centre of the image, `size` pixels square, after its shorter side was resized to 256/224 of that."""
    from torchvision.transforms import v2

    steps: Transform = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
    return steps
