"""Segmentation from the first image to an INT8 engine: LR-ASPP of torchvision on clothes of Fashion-MNIST.

    python examples/segmentation.py [FOLDER]

Writes a data set with masks made by thresholds below FOLDER/data, trains and compresses the network, builds the engine,
and prints the engine's own mean IoU. Minutes on two CPU cores; nothing is downloaded where Fashion-MNIST is installed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import sbs_deploy
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.inputs.data import load_dataset
from sbs_train.stages.train import train

SIDE, THRESHOLD = 64, 40
CONFIG = TrainConfig(
    task="segmentation",
    model="torchvision:lraspp_mobilenet_v3_large",
    image_size=SIDE,
    workers=0,
    batch_size=16,
    target="16x",
    device="cpu",
    pretrain=PretrainConfig(epochs=6, lr=0.02),
    search=SearchConfig(epochs=1, lr=0.01),
    finetune=FinetuneConfig(epochs=2, lr=0.01),
)


def write_data(folder: Path, train_images: int = 400, val_images: int = 80) -> None:
    """Canvases with one to three clothes each, FOLDER/{train,val}/{images,masks}; classes: background, ten clothes."""
    clothes = load_dataset("fashion-mnist")
    rng = np.random.default_rng(0)
    for split, source, count in (("train", clothes.train, train_images), ("val", clothes.test, val_images)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            canvas = rng.normal(90, 15, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for row in rng.integers(len(source), size=rng.integers(1, 4)):
                grey = np.kron(source.images[row, 0].numpy()[::2, ::2], np.ones((2, 2), np.uint8))
                top, left = rng.integers(SIDE - 28 + 1, size=2)
                cloth = grey > THRESHOLD
                colour = rng.uniform(0.5, 1.0, 3)
                canvas[top : top + 28, left : left + 28][cloth] = (grey[cloth, None] * colour).astype(np.uint8)
                mask[top : top + 28, left : left + 28][cloth] = 1 + int(source.labels[row])
            Image.fromarray(canvas).save(folder / split / "images" / f"{index:04}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{index:04}.png")
    names = ["background", *(f"cloth {number}" for number in range(10))]
    (folder / "classes.txt").write_text("\n".join(names))


def main(folder: Path = Path("runs/segmentation"), config: TrainConfig = CONFIG, backend: str = "onnxruntime") -> None:
    """Data, training, engine, and what the engine itself reaches."""
    data = folder / "data"
    if not data.exists():
        write_data(data)
    run = train(replace(config, data=f"folder:{data}"), folder / "run")
    print("trained:", run.metrics.finetune)
    engine = sbs_deploy.build(run.run, "int8", backend, placement="plan")
    print("engine:", sbs_deploy.evaluate(run.run, backend=backend), engine.path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
