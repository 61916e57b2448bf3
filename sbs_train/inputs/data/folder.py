"""Image folders: DIR/train/CLASS/… and DIR/val/CLASS/…, as torchvision's ImageFolder and ImageNet lay them out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.images import SUFFIXES
from sbs_train.inputs.data.samples import Files

_ENDS = tuple(f".{suffix}" for suffix in SUFFIXES)
_Inode = tuple[int, int]
"""Device and inode number, which identify a folder under all its names."""


@dataclass(frozen=True, kw_only=True)
class FolderFiles(Files):
    """Images in separate files."""

    root: str
    names: npt.NDArray[np.bytes_]
    """Paths below `root`, as one array: a list of a million strings would be slow to send to workers."""

    def take(self, index: npt.NDArray[np.int64]) -> Self:
        """The images at `index`, in that order."""
        return type(self)(labels=self.labels[index], root=self.root, names=self.names[index])

    def read(self, index: int) -> bytes:
        """One encoded image."""
        return bounds.read_regular(self.where(index), bounds.IMAGE_BYTES, "make the image smaller")

    def where(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))


def folder_files(root: Path) -> tuple[FolderFiles, FolderFiles, int]:
    """The images below root/train and root/val, and the number of classes; labels number train's sorted class names.

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
    seen: dict[_Inode, str] = {}
    for split in (train, val):
        _enter(str(split), seen)
    for split in (train, val):
        for above in split.resolve().parents:  # a link to a parent would lead back here
            seen.setdefault(_inode(str(above)), str(above))
    return _scan(train, labels, seen), _scan(val, {name: labels[name] for name in known}, seen), len(classes)


def _classes(directory: Path) -> set[str]:
    """Names of the folders in train/ or val/; SbsError if there are none."""
    if not directory.is_dir():
        raise SbsError(f"{directory} is not there; the data set must hold train/CLASS/… and val/CLASS/…")
    try:
        classes = {entry.name for entry in os.scandir(directory) if entry.is_dir()}
    except OSError as error:
        raise SbsError(f"{directory} cannot be read ({error.strerror}); allow it, or name another directory") from error
    if not classes:
        raise SbsError(
            f"{directory} holds no folders; it must hold one for each class (torchvision.datasets.ImageNet unpacks "
            "ImageNet's archives that way)"
        )
    return classes


def _scan(directory: Path, labels: dict[str, int], seen: dict[_Inode, str]) -> FolderFiles:
    """The images of each class, in the order of torchvision's `make_dataset`."""
    skip = len(str(directory)) + 1
    names: list[bytes] = []
    numbers: list[int] = []
    for name, label in sorted(labels.items()):
        found = [path for _, paths in sorted(_walk(str(directory / name), seen)) for path in paths]
        if not found:
            raise SbsError(f"{directory / name} is empty; every class needs at least one image: {', '.join(SUFFIXES)}")
        names += [os.fsencode(path[skip:]) for path in found]
        numbers += [label] * len(found)
    return FolderFiles(root=str(directory), names=np.array(names), labels=np.array(numbers, dtype=np.int64))


def _walk(top: str, seen: dict[_Inode, str]) -> Iterator[tuple[str, list[str]]]:
    """A folder and those inside it, links followed, each with its images."""
    pending = [(top, 0)]
    while pending:
        directory, depth = pending.pop()
        bounds.require(depth, bounds.FOLDER_DEPTH, f"{directory}: folders inside the class are", "lay them out flatter")
        _enter(directory, seen)
        images = []
        try:
            for entry in os.scandir(directory):
                if entry.is_dir():
                    pending.append((entry.path, depth + 1))
                elif entry.name.lower().endswith(_ENDS):
                    # A broken link counts as an image, which fails or is skipped when it is read.
                    if not entry.is_file() and os.path.exists(entry.path):
                        raise SbsError(f"{entry.path} is no regular file; take it out of the data set")
                    images.append(entry.path)
        except OSError as error:
            raise SbsError(f"{directory} cannot be read ({error.strerror}); allow it, or take it away") from error
        yield directory, sorted(images)


def _enter(directory: str, seen: dict[_Inode, str]) -> None:
    """Remember a folder; SbsError for a second name of it: its images would count twice, perhaps in two classes."""
    first = seen.setdefault(_inode(directory), directory)
    if first != directory:
        raise SbsError(f"{directory} is the same folder as {first}; remove the link, so that no image counts twice")


def _inode(directory: str) -> _Inode:
    """Device and inode number of a folder; SbsError if the folder cannot be read."""
    try:
        status = os.stat(directory)
    except OSError as error:
        raise SbsError(f"{directory} cannot be read ({error.strerror}); allow it, or take it away") from error
    return status.st_dev, status.st_ino
