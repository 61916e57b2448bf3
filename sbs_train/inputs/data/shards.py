"""WebDataset shards: tar files in which KEY.jpg (or another image) and KEY.cls (its class, a number) follow each other.

A shard is indexed once, by reading its headers; then its images can be read like files. So epochs are exact, any
process can read any sample, and only images and class numbers are decoded: other members of a shard (.json, .pyd, …)
are never read.
"""

import contextlib
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from sbs_train.contract import bounds, npz, rundir
from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.images import SUFFIXES
from sbs_train.inputs.data.samples import Files

_DIGITS = 20
"""Most bytes of a .cls file, line end included."""
_INDEX_FORMAT = "2"
"""Version of cached indices; raise it when shards get further checks."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShardFiles(Files):
    """Images inside tar files."""

    paths: tuple[str, ...]
    shards: Array
    """Index into `paths` of each image's shard."""
    offsets: Array
    """Bytes from the start of the shard to the image."""
    sizes: Array
    """Bytes of the encoded image."""
    names: npt.NDArray[np.bytes_]
    """Name of the image in the tar file."""

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
        """Bytes of one encoded image; OSError if it cannot be read."""
        with bounds.open_regular(self.paths[self.shards[index]]) as file:
            file.seek(int(self.offsets[index]))
            data = file.read(int(self.sizes[index]))
        if len(data) != self.sizes[index]:
            raise OSError("the shard was cut short")
        return data

    def where(self, index: int) -> str:
        """The name of an image, as SHARD:NAME."""
        return f"{self.paths[self.shards[index]]}:{os.fsdecode(self.names[index])}"


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Positions of the samples of one shard; arrays as in `ShardFiles`, one row per sample."""

    labels: Array
    offsets: Array
    sizes: Array
    names: npt.NDArray[np.bytes_]


def shard_files(paths: Sequence[Path], cache: Path) -> ShardFiles:
    """The samples of local shards, in order.

    Args:
        cache: directory of cached indices, so that the next run need not read the headers again.

    Raises:
        SbsError: a shard is missing, damaged or compressed, a sample has no image or no class, or no sample exists.
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
    """The index of a shard, from the cache or else from its headers. SbsError as in `shard_files`."""
    try:
        status = path.stat()
    except OSError as error:
        raise SbsError(f"{path} cannot be read ({error.strerror}); check the shards' names in --data") from error
    version = f"{_INDEX_FORMAT}/{path.resolve()}/{status.st_size}/{status.st_mtime_ns}"
    kept = cache / "indices" / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}.npz"
    # A damaged cached index is made again from the shard.
    with contextlib.suppress(*npz.DAMAGED):
        return _kept_index(kept, status.st_size)
    print_progress(f"indexing {path}")
    try:
        with bounds.open_regular(path) as file, tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
            rows = list(_samples(path, tar, status.st_size))
    except SbsError:
        raise
    except Exception as error:  # tarfile may raise anything for damaged headers
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SbsError(
            f"{path} is damaged, or compressed ({reason}); shards are plain .tar files: get it again or gunzip it"
        ) from error
    names, labels, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
    index = _Index(
        labels=np.array(labels, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        names=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
    )
    # Without a writable cache the run goes on, only slower.
    with contextlib.suppress(SbsError), rundir.atomic_path(kept) as temporary, temporary.open("wb") as out:
        np.savez(out, **vars(index))
    return index


def _kept_index(kept: Path, size: int) -> _Index:
    """The cached index of a shard of `size` bytes; raises one of npz.DAMAGED if it is missing or damaged."""
    arrays = npz.read_npz(kept, bounds.INDEX_BYTES)
    index = _Index(**{name: arrays[name] for name in ("labels", "offsets", "sizes", "names")})
    rows = index.labels.shape
    for numbers in (index.labels, index.offsets, index.sizes):
        if numbers.dtype != np.int64 or numbers.shape != rows or np.any(numbers < 0):
            raise ValueError("an index of other numbers")
    if len(rows) != 1 or index.names.shape != rows or index.names.dtype.kind != "S":
        raise ValueError("an index of other names")
    if np.any(index.labels >= bounds.CLASSES) or np.any(index.offsets > size - index.sizes):
        raise ValueError("an index of another shard")
    return index


class _Headers:
    """A file for tarfile that refuses headers of more than `bounds.SHARD_HEADER_BYTES`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes; ReadError if `size` is more than a header or a class needs."""
        if not 0 <= size <= bounds.SHARD_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(path: Path, archive: tarfile.TarFile, size: int) -> Iterator[tuple[str | None, str, tarfile.TarInfo]]:
    """Key, suffix and header of each file in a shard of `size` bytes."""
    from webdataset.tariterators import base_plus_ext

    behind = -1
    for member in archive:
        # Negative sizes would lead back, in an endless loop.
        if member.size < 0 or member.offset_data <= behind:
            raise tarfile.ReadError("a file of negative size")
        behind = member.offset_data
        if not member.isreg():
            continue
        bounds.require(len(member.name), bounds.MEMBER_NAME, f"{path}: the characters of a name are", "get it again")
        if member.sparse is not None:
            raise SbsError(f"{path}: {member.name} has holes; write the shard again, without --sparse")
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"{member.name} is cut short")
        key, suffix = base_plus_ext(member.name)
        yield key, suffix or "", member


def _samples(path: Path, archive: tarfile.TarFile, size: int) -> Iterator[tuple[str, int, int, int]]:
    """Name, label, offset and size of each image, grouped by key as webdataset does."""
    members = _members(path, archive, size)
    for key, group in itertools.groupby(members, lambda row: row[0]):
        if key is None or key.startswith("__"):  # not a sample: no suffix, or webdataset's metadata
            continue
        parts = {suffix.lower(): member for _, suffix, member in group}
        image = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
        if image is None or "cls" not in parts:
            lacks = "image (jpg, png, …)" if image is None else ".cls with its class"
            raise SbsError(f"{path}: sample {key} has no {lacks}; write it again, with both one after the other")
        bounds.require(image.size, bounds.IMAGE_BYTES, f"{path}: the bytes of {image.name} are", "make it smaller")
        text = archive.extractfile(parts["cls"])
        assert text is not None
        digits = text.read(_DIGITS + 1).strip()
        if parts["cls"].size > _DIGITS or not digits.isdigit() or int(digits) >= bounds.CLASSES:
            raise SbsError(f"{path}: {key}.cls holds {digits!r}; it must hold a class, counted from 0")
        yield image.name, int(digits), image.offset_data, image.size
        archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
