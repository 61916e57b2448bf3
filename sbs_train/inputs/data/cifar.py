"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as torchvision keeps them, read without running their pickles.

A pickle may name any function to call. These files need five, which rebuild arrays; everything else is refused.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.interface import fixed_order
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """One of the two."""

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
    """60,000 colour images, 32x32; a tenth of the 50,000 for training validates.

    Raises:
        SbsError: the files are not there and cannot be downloaded, are damaged, or hold something else.
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
    for place in (cache / which.folder,) if data_dir is None else (data_dir / which.folder, data_dir):
        if place.name == which.folder and place.is_dir():
            return place
    if data_dir is not None:
        raise SbsError(f"{data_dir} has no {which.folder}; name the directory that holds it with --data-dir")
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    source = getattr(datasets, which.name.upper())
    try:
        # Not the data set's own constructor, which would unpickle.
        download_and_extract_archive(source.url, str(cache), filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise SbsError(
            f"{which.title} is not on this machine and cannot be downloaded; unpack {source.filename} from "
            f"{source.url.rpartition('/')[0]} and name the directory that holds {which.folder} with --data-dir"
        ) from error
    return cache / which.folder


def _read_all(which: Cifar, directory: Path, names: tuple[str, ...]) -> MemorySplit:
    parts = [_read(directory / name, which) for name in names]
    return MemorySplit(
        images=torch.cat([part.images for part in parts]), labels=torch.cat([part.labels for part in parts])
    )


def _read(path: Path, which: Cifar) -> MemorySplit:
    try:
        with path.open("rb") as file:
            entry = _Reader(file, encoding="latin1").load()
        images = np.asarray(entry["data"]).reshape(-1, 3, 32, 32)
        labels = np.asarray(entry[which.labels])
    except FileNotFoundError as error:
        raise SbsError(f"{path} is not there; get {which.title} again") from error
    except Exception as error:  # an unpickler raises whatever the damaged bytes lead to
        raise SbsError(f"{path} is damaged ({type(error).__name__}: {error}); get {which.title} again") from error
    if images.dtype != np.uint8 or labels.dtype != np.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise SbsError(f"{path} does not hold images and {which.labels} of {which.title}; get it again")
    if labels.min() < 0 or labels.max() >= which.num_classes:
        raise SbsError(f"{path}: {which.labels} must lie in 0..{which.num_classes - 1}; get {which.title} again")
    return MemorySplit(images=torch.from_numpy(images.copy()), labels=torch.from_numpy(labels))


class _Reader(pickle.Unpickler):
    """Rebuilds NumPy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy.core.", "numpy._core.")  # its name until NumPy 2
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.numeric", "_frombuffer"): _array_from_bytes,
            ("_codecs", "encode"): _latin1_bytes,
        }
        if (package, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which no data file needs")
        return allowed[package, name]


def _empty_array(kind: type, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """What a pickled array is filled into."""
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _array_from_bytes(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    """An array pickled by protocol 5."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _latin1_bytes(text: str, _: str) -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2."""
    return text.encode("latin1")
