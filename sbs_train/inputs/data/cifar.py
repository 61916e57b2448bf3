"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as torchvision keeps them, read without running their pickles."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.interface import fixed_order
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit, checked
from sbs_train.inputs.data.pickled import read_pickle


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """Names, files and statistics of CIFAR-10 or CIFAR-100."""

    name: str
    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    labels="labels",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    labels="fine_labels",
    num_classes=100,
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar(which: Cifar, data_dir: Path | None, cache: Path) -> MemoryDataset:
    """60,000 colour images, 32x32: 45,000 train, 5,000 validate, 10,000 test.

    Raises:
        SbsError: the files are missing and cannot be downloaded, are damaged, or have another content.
    """
    directory = _find(which, data_dir, cache)
    train = _read_all(which, directory, which.train)
    order = fixed_order(len(train))
    held_out = len(train) // 10
    return MemoryDataset(
        name=which.name,
        input=InputSpec(channels=3, height=32, width=32, mean=list(which.mean), std=list(which.std)),
        num_classes=which.num_classes,
        shift=4,
        flip=True,
        train=train[order[held_out:]],
        val=train[order[:held_out]],
        test=_read_all(which, directory, which.test),
    )


def _find(which: Cifar, data_dir: Path | None, cache: Path) -> Path:
    """The directory with the files: below `data_dir` if given, else in the cache, downloaded if missing."""
    for place in (cache / which.folder,) if data_dir is None else (data_dir / which.folder, data_dir):
        if place.name == which.folder and place.is_dir():
            return place
    if data_dir is not None:
        raise SbsError(f"{data_dir} has no {which.folder}; name the directory that holds it with --data-dir")
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    source = getattr(datasets, which.name.upper())
    try:
        # torchvision's constructor would unpickle, so only its download is used.
        download_and_extract_archive(source.url, str(cache), filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise SbsError(
            f"{which.title} is not on this machine and cannot be downloaded; unpack {source.filename} from "
            f"{source.url.rpartition('/')[0]} and name the directory that holds {which.folder} with --data-dir"
        ) from error
    return cache / which.folder


def _read_all(which: Cifar, directory: Path, names: tuple[str, ...]) -> MemorySplit:
    """The images of several files, in order."""
    parts = [_read(directory / name, which) for name in names]
    whole = MemorySplit(
        images=torch.cat([part.images for part in parts]), labels=torch.cat([part.labels for part in parts])
    )
    return checked(whole, directory, (3, 32, 32), which.num_classes, least=10 if names == which.train else 1)


def _read(path: Path, which: Cifar) -> MemorySplit:
    """The images of one file; SbsError if the file is missing, damaged, or has another content."""
    try:
        entry = read_pickle(bounds.read_regular(path, bounds.PICKLE_BYTES, f"get {which.title} again"))
        images, labels = entry["data"], entry[which.labels]
        # Only NumPy arrays: lists of lists that hold one another could expand to gigabytes.
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            labels = np.array(labels, dtype=np.int64)
    except FileNotFoundError as error:
        raise SbsError(f"{path} is not there; get {which.title} again") from error
    except Exception as error:  # damaged bytes lead to any of them
        reason = " ".join(str(error).split())[:200]
        raise SbsError(f"{path} is damaged ({type(error).__name__}: {reason}); get {which.title} again") from error
    if not (
        _is_array(images, np.uint8)
        and _is_array(labels, np.int64)
        and images.shape == (len(labels), 3072)
        and len(labels)
    ):
        raise SbsError(f"{path} does not hold images and {which.labels} of {which.title}; get it again")
    split = MemorySplit(images=torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), labels=torch.from_numpy(labels))
    return checked(split, path, (3, 32, 32), which.num_classes)


def _is_array(value: object, dtype: type) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim > 0
