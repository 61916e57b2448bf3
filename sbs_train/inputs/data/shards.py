"""WebDataset shards: tar files in which KEY.jpg (or another image) and KEY.cls (its class, a number) follow each other.

A shard is indexed once, by reading its headers; from then on its images are as good as files. So epochs are exact, any
process can read any sample, and nothing but images and class numbers is ever decoded: what else lies in a shard (.json,
.pyd, …) is not even read.
"""

import contextlib
import hashlib
import itertools
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_train.contract import rundir
from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.samples import Files

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
MAX_CLASSES = 1_000_000

Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShardFiles(Files):
    """Images inside tar files."""

    paths: tuple[str, ...]
    shards: Array
    """Which of `paths` an image lies in."""
    offsets: Array
    """Where it starts, in bytes."""
    sizes: Array
    """Its bytes."""
    names: npt.NDArray[np.bytes_]
    """Its name in the tar file."""

    def take(self, index: npt.NDArray[np.int64]) -> Self:
        """The images at `index`, in that order."""
        return type(self)(
            labels=self.labels[index],
            paths=self.paths,
            shards=self.shards[index],
            offsets=self.offsets[index],
            sizes=self.sizes[index],
            names=self.names[index],
        )

    def read(self, index: int) -> bytes:
        """One encoded image."""
        with open(self.paths[self.shards[index]], "rb") as file:
            file.seek(int(self.offsets[index]))
            data = file.read(int(self.sizes[index]))
        if len(data) != self.sizes[index]:
            raise OSError("the shard was cut short")
        return data

    def where(self, index: int) -> str:
        """SHARD:NAME."""
        return f"{self.paths[self.shards[index]]}:{os.fsdecode(self.names[index])}"


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What a shard holds, one row a sample."""

    labels: Array
    offsets: Array
    sizes: Array
    names: npt.NDArray[np.bytes_]


def shard_files(paths: Sequence[Path], cache: Path) -> ShardFiles:
    """The samples of local shards, in order.

    Args:
        cache: where indices are kept, so that the next run need not read the headers again.

    Raises:
        SbsError: a shard is missing, damaged or compressed, a sample has no image or no class, or there is no sample.
    """
    indices = [_index(path, cache) for path in paths]
    if not sum(len(index.labels) for index in indices):
        raise SbsError(f"{paths[0]}: no samples in {len(paths)} shards; a sample is KEY.jpg with KEY.cls")
    return ShardFiles(
        paths=tuple(str(path) for path in paths),
        shards=np.repeat(np.arange(len(paths)), [len(index.labels) for index in indices]),
        labels=np.concatenate([index.labels for index in indices]),
        offsets=np.concatenate([index.offsets for index in indices]),
        sizes=np.concatenate([index.sizes for index in indices]),
        names=np.concatenate([index.names for index in indices]),
    )


def _index(path: Path, cache: Path) -> _Index:
    try:
        status = path.stat()
    except OSError as error:
        raise SbsError(f"{path} cannot be read ({error.strerror}); check the shards' names in --data") from error
    version = f"{path.resolve()}/{status.st_size}/{status.st_mtime_ns}"
    kept = cache / "indices" / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}.npz"
    # Whatever is wrong with a kept index, the shard itself still has it.
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(kept) as arrays:
        return _Index(**{name: arrays[name] for name in ("labels", "offsets", "sizes", "names")})
    print_progress(f"indexing {path}")
    try:
        with tarfile.open(path, "r:") as archive:
            rows = list(_samples(path, archive))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, SbsError):
            raise
        raise SbsError(
            f"{path} is damaged, or compressed ({error}); shards are plain .tar files: get it again or gunzip it"
        ) from error
    names, labels, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
    index = _Index(
        labels=np.array(labels, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        names=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
    )
    # A home directory that cannot be written to costs time, not the run.
    with contextlib.suppress(SbsError), rundir.atomic_path(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(index))
    return index


def _samples(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, int, int, int]]:
    """Name, label, offset and size of each image, grouped by key as webdataset does."""
    from webdataset.tariterators import base_plus_ext

    members = ((*base_plus_ext(member.name), member) for member in archive if member.isreg())
    for key, group in itertools.groupby(members, lambda row: row[0]):
        if key is None or key.startswith("__"):  # not a sample: no suffix, or webdataset's metadata
            continue
        parts = {suffix.lower(): member for _, suffix, member in group}
        image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
        if image is None or "cls" not in parts:
            lacks = "image (jpg, png, …)" if image is None else ".cls with its class"
            raise SbsError(f"{path}: sample {key} has no {lacks}; write it again, with both one after the other")
        text = archive.extractfile(parts["cls"])
        assert text is not None
        digits = text.read(20).strip()
        if not digits.isdigit() or int(digits) >= MAX_CLASSES:
            raise SbsError(f"{path}: {key}.cls holds {digits!r}; it must hold a class, counted from 0")
        yield image.name, int(digits), image.offset_data, image.size
        archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
