"""Images and labels, held in memory: train, validation and test split of a named data set.

The validation split makes every choice (snapshot, early stopping); the test set only reports.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec

SPLIT_SEED = 20230101
"""Splits do not depend on a run's seed: runs stay comparable."""
FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CACHE = Path.home() / ".cache" / "sbs"


@dataclass(frozen=True, kw_only=True)
class Split:
    """uint8 images_NCHW and int64 labels_N."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three splits and how their pixels become the network's input."""

    name: str
    input: InputSpec
    num_classes: int
    shift: int
    """Largest random shift of a training image, in pixels."""
    flip: bool
    """Whether training images are mirrored at random."""
    train: Split
    val: Split
    test: Split

    def to(self, device: torch.device) -> "Dataset":
        """The same data on `device`."""
        moved = {name: _on_device(getattr(self, name), device) for name in ("train", "val", "test")}
        return Dataset(**{**self.__dict__, **moved})

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """float32 network input of uint8 images."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.input.mean, device=images_NCHW.device).view(shape)
        std = torch.tensor(self.input.std, device=images_NCHW.device).view(shape)
        return (images_NCHW.float() / 255 - mean) / std

    def train_batches(self, batch_size: int, seed: int, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled, augmented (x_NCHW, y_N), in an order that depends on `seed` alone.

        `steps` batches if given: fewer than the split holds, or more, by shuffling again.
        """
        generator = torch.Generator().manual_seed(seed)
        steps = self.steps_per_epoch(batch_size) if steps is None else steps
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(self.train), generator=generator)])
            index, order = order[:batch_size], order[batch_size:]
            index = index.to(self.train.labels.device)
            yield self.normalise(self._augment(self.train.images[index], generator)), self.train.labels[index]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches that the training split holds, at least one."""
        return max(1, len(self.train) // batch_size)

    def eval_batches(self, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_NCHW, y_N) of a split, in order."""
        for start in range(0, len(split), batch_size):
            part = slice(start, start + batch_size)
            yield self.normalise(split.images[part]), split.labels[part]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        device = images.device
        if self.flip:
            mirrored = torch.rand(count, generator=generator).to(device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        shift = self.shift
        padded = F.pad(images, (shift, shift, shift, shift))
        top, left = torch.randint(0, 2 * shift + 1, (2, count, 1, 1), generator=generator).to(device)
        rows = top[:, None] + torch.arange(height, device=device).view(1, 1, -1, 1)
        columns = left[:, None] + torch.arange(width, device=device).view(1, 1, 1, -1)
        batch = torch.arange(count, device=device).view(-1, 1, 1, 1)
        channel = torch.arange(images.shape[1], device=device).view(1, -1, 1, 1)
        return padded[batch, channel, rows, columns]


def load_dataset(name: str, data_dir: Path | None = None) -> Dataset:
    """A data set by name.

    Raises:
        SbsError: unknown name, missing directory, or a damaged file.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise SbsError(f"--data-dir {data_dir} is not a directory; name the one that holds the data set's files")
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(data_dir)
    raise SbsError(f"unknown data set {name}; choose one of digits, fashion-mnist")


def _digits() -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8x8 pixels of 17 grey levels, enlarged to 16x16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    images = F.interpolate(grey, size=(16, 16), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, val, train = order[:360], order[360:540], order[540:]
    return Dataset(
        name="digits",
        input=InputSpec(channels=1, height=16, width=16, mean=[0.306], std=[0.3]),
        num_classes=10,
        shift=1,
        flip=False,
        train=Split(images=images[train], labels=labels[train]),
        val=Split(images=images[val], labels=labels[val]),
        test=Split(images=images[test], labels=labels[test]),
    )


def _fashion_mnist(data_dir: Path | None) -> Dataset:
    """70,000 grey images of clothes, 28x28 (Xiao et al., arXiv 1708.07747); 5,000 of the 60,000 validate."""
    directory = data_dir or _find_fashion_mnist()
    images, labels = _idx_pair(directory, "train")
    test_images, test_labels = _idx_pair(directory, "t10k")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = len(labels) // 12
    val, train = order[:held_out], order[held_out:]
    return Dataset(
        name="fashion-mnist",
        input=InputSpec(channels=1, height=28, width=28, mean=[0.2860], std=[0.3530]),
        num_classes=10,
        shift=2,
        flip=True,
        train=Split(images=images[train], labels=labels[train]),
        val=Split(images=images[val], labels=labels[val]),
        test=Split(images=test_images, labels=test_labels),
    )


def _find_fashion_mnist() -> Path:
    raw = FASHION_MNIST_CACHE / "FashionMNIST" / "raw"
    for directory in (FASHION_MNIST_DEBIAN, raw):
        if any(directory.glob("train-images-idx3-ubyte*")):
            return directory
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(FASHION_MNIST_CACHE), download=True)
    except (OSError, RuntimeError) as error:
        raise SbsError(
            "Fashion-MNIST is not on this machine and cannot be downloaded; "
            "`apt-get install dataset-fashion-mnist`, or name its directory with --data-dir"
        ) from error
    return raw


def _idx_pair(directory: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(directory, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise SbsError(f"{directory}: {len(images)} {prefix} images but {len(labels)} labels; get the files again")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _read_idx(directory: Path, stem: str, dims: int) -> npt.NDArray[np.uint8]:
    """The unsigned bytes of an idx file, plain or gzipped: 0, 0, 8 (uint8), dims, then sizes as big-endian int32."""
    path = next((p for p in (directory / f"{stem}.gz", directory / stem) if p.is_file()), None)
    if path is None:
        raise SbsError(f"{directory} has no {stem} nor {stem}.gz; name the right directory with --data-dir")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SbsError(f"{path} is damaged ({error}); get the file again") from error
    sizes = np.frombuffer(raw, ">i4", dims, 4) if len(raw) >= 4 + 4 * dims else np.zeros(0)
    if raw[:4] != bytes((0, 0, 8, dims)) or len(raw) != 4 + 4 * dims + int(np.prod(sizes)):
        raise SbsError(f"{path} is not a whole idx file of {dims} dimensions; get the file again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape([int(size) for size in sizes]).copy()


def _on_device(split: Split, device: torch.device) -> Split:
    return Split(images=split.images.to(device), labels=split.labels.to(device))
