"""A training loop of one's own, compressed: two inputs, two outputs, AdamW, a loss of its own; Fashion-MNIST.

    python examples/own_loop.py runs/own

The model gets an image and the number of one of its quarters; it says what the image shows, and how bright that quarter
is. Lines with `search`, and those after the training, are all that compression adds. The engines are built for ONNX
Runtime, OpenVINO and, where it is installed, TensorRT-RTX.
"""

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sbs_deploy
import sbs_train

DATA = Path("/usr/share/datasets/fashion-mnist")
BACKENDS: dict[Literal["onnxruntime", "openvino", "tensorrt-rtx"], str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt-rtx": "tensorrt_rtx",
}
"""Backends, and the packages that they need."""
TARGET = "40x"
Batch = tuple[dict[str, Tensor], dict[str, Tensor]]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Garments(nn.Module):
    """What an image shows, and how bright one of its quarters is."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.quarter = nn.Sequential(nn.Linear(4, 32), nn.ReLU())
        self.mix = nn.Sequential(nn.Linear(4 * channels + 32, 64), nn.ReLU())
        self.garment = nn.Linear(64, 10)
        self.brightness = nn.Linear(64, 1)

    def forward(self, image: Tensor, quarter: Tensor) -> dict[str, Tensor]:
        maps = F.adaptive_avg_pool2d(self.blocks(self.stem(image)), 2).flatten(1)
        mixed = self.mix(torch.cat([maps, self.quarter(quarter)], 1))
        return {"garment": self.garment(mixed), "brightness": self.brightness(mixed)[:, 0]}


def read(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in 0..1 and labels (N): "train" or "t10k"."""
    pixels = np.frombuffer(gzip.decompress((DATA / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((DATA / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28) / np.float32(255)), torch.from_numpy(labels.astype(np.int64))


def batches(images: Tensor, labels: Tensor, count: int, size: int, seed: int) -> list[Batch]:
    """Random batches: inputs of the model, and what it shall answer."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        index, which = (torch.randint(0, n, (size,), generator=generator) for n in (len(images), 4))
        quarters = F.adaptive_avg_pool2d(images[index], 2).flatten(1)
        inputs = {"image": images[index], "quarter": F.one_hot(which, 4).float()}
        found.append((inputs, {"garment": labels[index], "brightness": quarters[torch.arange(size), which]}))
    return found


def loss_of(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the garment, and a Huber loss of the brightness."""
    brightness = F.huber_loss(outputs["brightness"], wanted["brightness"], delta=0.1)
    return F.cross_entropy(outputs["garment"], wanted["garment"]) + 20 * brightness


def train(model: nn.Module, data: list[Batch], rate: float, search: "sbs_train.Search | None" = None) -> None:
    """One's own loop; `search.step()` is the only line that is new."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(data))
    model.train()
    for inputs, wanted in data:
        loss_of(model(**inputs), wanted).backward()
        if search is not None:
            search.step()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def scores(answers: list[dict[str, np.ndarray]], data: list[Batch]) -> dict[str, float]:
    """Percent of garments that are right, and the mean error of the brightness."""
    right = [(a["garment"].argmax(1) == w["garment"].numpy()).mean() for a, (_, w) in zip(answers, data, strict=True)]
    error = [abs(a["brightness"] - w["brightness"].numpy()).mean() for a, (_, w) in zip(answers, data, strict=True)]
    return {"garment": 100 * float(np.mean(right)), "brightness": float(np.mean(error))}


@torch.no_grad()
def scores_of_model(model: nn.Module, data: list[Batch]) -> dict[str, float]:
    """The model's scores in eval mode."""
    model.eval()
    return scores([{k: v.numpy() for k, v in model(**inputs).items()} for inputs, _ in data], data)


def main(out: Path, steps: int = 300) -> dict[str, dict[str, float]]:
    """Train, compress, fine-tune, export and build; scores of the float model, of the plan and of every engine."""
    torch.manual_seed(0)
    training, test = batches(*read("train"), 3 * steps, 64, 0), batches(*read("t10k"), 16, 64, 1)
    model = Garments()
    train(model, training[:steps], 4e-3)
    found = {"float": scores_of_model(model, test)}

    calibration = [inputs for inputs, _ in training[:8]]
    search = sbs_train.Search(model, calibration[0], target=TARGET, steps=steps, calibration=calibration)
    train(model, training[steps : 2 * steps], 2e-3, search)
    plan = search.finish()
    train(model, training[2 * steps :], 2e-3)
    found["plan"] = scores_of_model(model, test)
    print(f"{plan.cost.reduction:.1f}x fewer BOPs")

    golden = [inputs for inputs, _ in test]
    run = sbs_deploy.export(model, plan, out=out, golden=golden, calibration=calibration)
    for backend, package in BACKENDS.items():
        if find_spec(package) is None:
            continue
        built = sbs_deploy.build(run, precision="int8", backend=backend, placement="plan")
        print(built.path)
        if backend != "tensorrt-rtx" or torch.cuda.is_available():
            with sbs_deploy.load(built.path) as engine:
                answers = [engine.run({name: x.numpy() for name, x in inputs.items()}) for inputs in golden]
            found[backend] = scores(answers, test)
    for name, row in found.items():
        print(f"{name:12} garment {row['garment']:.2f} %  brightness off by {row['brightness']:.4f}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own"))
