"""Small data sets that are read into memory whole: digits and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.interface import fixed_order
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit

FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def digits() -> MemoryDataset:
    """scikit-learn's 1797 handwritten digits, 8x8 pixels of 17 grey levels, enlarged to 16x16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)
    images = F.interpolate(grey, size=(16, 16), mode="bilinear", align_corners=False).round().to(torch.uint8)
    everything = MemorySplit(images=images, labels=torch.tensor(bunch.target, dtype=torch.int64))
    order = fixed_order(len(everything))
    return MemoryDataset(
        name="digits",
        input=InputSpec(channels=1, height=16, width=16, mean=[0.306], std=[0.3]),
        num_classes=10,
        shift=1,
        flip=False,
        train=everything[order[540:]],
        val=everything[order[360:540]],
        test=everything[order[:360]],
    )


def fashion_mnist(data_dir: Path | None, cache: Path) -> MemoryDataset:
    """70,000 grey images of clothes, 28x28 (Xiao et al., arXiv 1708.07747); 5,000 of the 60,000 validate."""
    directory = data_dir or _find(cache)
    train = _idx_pair(directory, "train")
    order = fixed_order(len(train))
    held_out = len(train) // 12
    return MemoryDataset(
        name="fashion-mnist",
        input=InputSpec(channels=1, height=28, width=28, mean=[0.2860], std=[0.3530]),
        num_classes=10,
        shift=2,
        flip=True,
        train=train[order[held_out:]],
        val=train[order[:held_out]],
        test=_idx_pair(directory, "t10k"),
    )


def _find(cache: Path) -> Path:
    raw = cache / "FashionMNIST" / "raw"
    for directory in (FASHION_MNIST_DEBIAN, raw):
        if any(directory.glob("train-images-idx3-ubyte*")):
            return directory
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise SbsError(
            "Fashion-MNIST is not on this machine and cannot be downloaded; "
            "`apt-get install dataset-fashion-mnist`, or name its directory with --data-dir"
        ) from error
    return raw


def _idx_pair(directory: Path, prefix: str) -> MemorySplit:
    images = _read_idx(directory, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise SbsError(f"{directory}: {len(images)} {prefix} images but {len(labels)} labels; get the files again")
    return MemorySplit(images=torch.from_numpy(images)[:, None], labels=torch.from_numpy(labels).long())


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
