"""Image folders: DIR/train/CLASS/… and DIR/val/CLASS/…, as torchvision's ImageFolder and ImageNet lay them out."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.samples import Files


@dataclass(frozen=True, kw_only=True)
class FolderFiles(Files):
    """Images that are a file each."""

    root: str
    names: npt.NDArray[np.bytes_]
    """Paths below `root`, as one array: a list of a million strings would take its time to each worker."""

    def take(self, index: npt.NDArray[np.int64]) -> Self:
        """The images at `index`, in that order."""
        return type(self)(labels=self.labels[index], root=self.root, names=self.names[index])

    def read(self, index: int) -> bytes:
        """One encoded image."""
        with open(self.where(index), "rb") as file:
            return file.read()

    def where(self, index: int) -> str:
        """Its path."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))


def folder_files(root: Path) -> tuple[FolderFiles, FolderFiles, int]:
    """The images below root/train and root/val, and the number of classes; labels are the sorted names of train's.

    Raises:
        SbsError: a folder is missing or empty, or val has a class that train does not have.
    """
    train, val = root / "train", root / "val"
    classes, known = _classes(train), _classes(val)
    if unknown := sorted(known - classes):
        raise SbsError(
            f"{val / unknown[0]}: {train} has no such class; the classes of val must be among those of train"
        )
    labels = {name: label for label, name in enumerate(sorted(classes))}
    return _scan(train, labels), _scan(val, {name: labels[name] for name in known}), len(classes)


def _classes(directory: Path) -> set[str]:
    if not directory.is_dir():
        raise SbsError(f"{directory} is not there; the data set must hold train/CLASS/… and val/CLASS/…")
    classes = {entry.name for entry in os.scandir(directory) if entry.is_dir()}
    if not classes:
        raise SbsError(
            f"{directory} holds no folders; it must hold one for each class (torchvision.datasets.ImageNet unpacks "
            "ImageNet's archives that way)"
        )
    return classes


def _scan(directory: Path, labels: dict[str, int]) -> FolderFiles:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    try:
        found = make_dataset(str(directory), labels, extensions=IMG_EXTENSIONS)
    except (FileNotFoundError, PermissionError) as error:
        raise SbsError(f"{directory}: {error}; every class needs at least one image") from error
    skip = len(str(directory)) + 1
    return FolderFiles(
        root=str(directory),
        names=np.array([os.fsencode(path[skip:]) for path, _ in found]),
        labels=np.array([label for _, label in found], dtype=np.int64),
    )
