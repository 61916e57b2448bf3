"""torchvision's two largest architectures, built small: their structure is what the tests are about."""

from torch import nn
from torchvision.models import VisionTransformer, vgg11_bn


def vgg(num_classes: int) -> nn.Module:
    """VGG-11 whose first linear layer, behind the flattened feature map, has 128 outputs instead of 4,096."""
    model = vgg11_bn(num_classes=num_classes)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 7 * 7, 128), nn.Linear(128, 128)
    model.classifier[6] = nn.Linear(128, num_classes)
    return model


def vit(num_classes: int) -> nn.Module:
    """A vision transformer of four blocks for images of 64x64."""
    return VisionTransformer(
        image_size=64,
        patch_size=16,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=512,
        num_classes=num_classes,
    )
