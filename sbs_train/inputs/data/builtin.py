"""Small data sets, read into memory whole: digits and Fashion-MNIST."""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.interface import fixed_order
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit, checked

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
    """70,000 grey images of clothes, 28x28 (Xiao et al., arXiv 1708.07747): 55,000 train, 5,000 validate."""
    directory = data_dir or _find(cache)
    train = _idx_pair(directory, "train", least=12)
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
        test=_idx_pair(directory, "t10k", least=1),
    )


def _find(cache: Path) -> Path:
    """The directory with Fashion-MNIST: from Debian's package, or in the cache, downloaded if missing."""
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


def _idx_pair(directory: Path, prefix: str, least: int) -> MemorySplit:
    """Images and labels of Fashion-MNIST with the prefix train or t10k, `least` images or more."""
    images = _read_idx(directory, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte", 1)
    split = MemorySplit(images=torch.from_numpy(images)[:, None], labels=torch.from_numpy(labels).long())
    return checked(split, directory / f"{prefix}-images-idx3-ubyte", (1, 28, 28), 10, least=least)


def _read_idx(directory: Path, stem: str, dims: int) -> npt.NDArray[np.uint8]:
    """The uint8 array of an idx file, plain or gzipped: 0, 0, 8 (uint8), dims, sizes as big-endian int32, then bytes.

    Raises:
        SbsError: the file is missing, damaged, too large, or of other dimensions.
    """
    path = next((p for p in (directory / f"{stem}.gz", directory / stem) if p.exists()), None)
    if path is None:
        raise SbsError(f"{directory} has no {stem} nor {stem}.gz; name the right directory with --data-dir")
    start = 4 + 4 * dims
    try:
        raw = bounds.read_regular(path, bounds.ARRAYS_BYTES, "get the file again")
        packed = path.suffix == ".gz"
        head = bounds.gunzip(raw, start) if packed else raw
        sizes = [int(size) for size in np.frombuffer(head, ">i4", dims, 4)] if len(head) >= start else []
        if head[:4] != bytes((0, 0, 8, dims)) or any(size < 0 for size in sizes):
            raise SbsError(f"{path} is not a whole idx file of {dims} dimensions; get the file again")
        claimed = bounds.array_bytes(sizes, 1)
        bounds.require(claimed, bounds.ARRAYS_BYTES, f"{path}: the bytes of its array are", "get the file again")
        data = bounds.gunzip(raw, start + claimed) if packed else raw
    except SbsError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise SbsError(f"{path} is damaged ({error}); get the file again") from error
    if len(data) != start + claimed:
        raise SbsError(f"{path} is not a whole idx file of {dims} dimensions; get the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy()
