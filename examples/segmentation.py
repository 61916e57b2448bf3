"""Segmentation from the first image to an INT8 engine: a small network on clothes of Fashion-MNIST.

    python examples/segmentation.py [FOLDER]

Writes a data set with masks made by thresholds below FOLDER/data, trains and compresses the network, builds engines,
and prints what the engines themselves reach. Minutes on two CPU cores; nothing is downloaded where Fashion-MNIST is
installed. `sbs-train --task segmentation --data folder:FOLDER/data --model torchvision:lraspp_mobilenet_v3_large`
trains one of torchvision's networks on the same data.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import sbs_deploy
import sbs_train
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.inputs.data import load_dataset
from sbs_train.inputs.data.masks import mask_data
from sbs_train.tasks.segmentation import Segmentation

SIDE, CLOTH, THRESHOLD = 64, 28, 40
NAMES = ["background", "top", "trousers", "shoe", "bag"]
CLASS_OF = [1, 2, 1, 1, 1, 3, 1, 3, 4, 3]
"""Class of each of the ten kinds of Fashion-MNIST."""
CONFIG = TrainConfig(
    device="cpu",
    pretrain=PretrainConfig(epochs=16, lr=0.004, optimizer="adamw", warmup=1, weight_decay=0.01),
    search=SearchConfig(epochs=4, lr=0.01),
    finetune=FinetuneConfig(epochs=4, lr=0.01),
)


def layer(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class UNet(nn.Module):
    """Two steps down, two up with concatenated shortcuts; x_NCHW to logits (N, classes, H, W)."""

    def __init__(self, classes: int = len(NAMES)) -> None:
        super().__init__()
        self.stem, self.middle, self.bottom = layer(3, 16), layer(16, 32, 2), layer(32, 64, 2)
        self.deep = nn.Sequential(layer(64, 64), layer(64, 64))
        self.up1, self.up2 = layer(64 + 32, 32), layer(32 + 16, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        large = self.stem(x)
        small = self.middle(large)
        y = self.bottom(small)
        y = y + self.deep(y)
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2.0), small], 1))
        y = self.up2(torch.cat([F.interpolate(y, scale_factor=2.0), large], 1))
        logits: Tensor = self.head(y)
        return logits


def write_data(folder: Path, train_images: int = 400, val_images: int = 80) -> None:
    """Canvases with one to three clothes each, FOLDER/{train,val}/{images,masks}."""
    clothes = load_dataset("fashion-mnist")
    rng = np.random.default_rng(0)
    for split, source, count in (("train", clothes.train, train_images), ("val", clothes.test, val_images)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            canvas = rng.normal(90, 15, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for row in rng.integers(len(source), size=rng.integers(1, 4)):
                grey = source.images[row, 0].numpy()
                top, left = rng.integers(SIDE - CLOTH + 1, size=2)
                cloth, place = grey > THRESHOLD, (slice(top, top + CLOTH), slice(left, left + CLOTH))
                canvas[place][cloth] = (grey[cloth, None] * rng.uniform(0.5, 1.0, 3)).astype(np.uint8)
                mask[place][cloth] = CLASS_OF[int(source.labels[row])]
            Image.fromarray(canvas).save(folder / split / "images" / f"{index:04}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{index:04}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))


def main(
    folder: Path = Path("runs/segmentation"),
    config: TrainConfig = CONFIG,
    backends: tuple[str, ...] = ("onnxruntime", "openvino"),
) -> tuple[float, dict[str, float]]:
    """Data, training, engines; returns the mean IoU of the network, and of the engine of each backend."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    task = Segmentation(data=mask_data("clothes", folder / "data", image_size=SIDE, workers=0), batch_size=8)
    torch.manual_seed(0)
    run = sbs_train.compress(UNet(), task, target="40x", out=folder / "run", config=config)
    golden = [task.inputs(batch) for batch in task.train_batches(1)]
    deployed = sbs_deploy.export(run.model, run.plan, out=folder / "deployed", golden=golden)
    found = {}
    for backend in backends:
        sbs_deploy.build(deployed, "int8", backend, placement="plan")
        found[backend] = sbs_deploy.evaluate(deployed, task, backend=backend)["miou"]
    return run.metrics.finetune.score, found


if __name__ == "__main__":
    network, engines = main(*map(Path, sys.argv[1:]))
    print(f"mean IoU: {network:.1f} % of the network, of the engines", engines)
