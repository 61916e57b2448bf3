"""Arrays from an npz file of unknown source: all headers are checked before anything is allocated. No torch."""

import ast
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from sbs_train.contract import bounds

Arrays = dict[str, npt.NDArray[Any]]

DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    RuntimeError,  # encrypted, nested too deep, or of a compression that zipfile does not know
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that `read_npz` and `parse_npz` raise for a file that is no whole npz of plain arrays."""


def read_npz(path: Path, limit: int = bounds.ARRAYS_BYTES) -> Arrays:
    """Every array of an npz file, as `parse_npz` reads them.

    Raises:
        FileNotFoundError: the file is missing.
        DAMAGED: one of these errors, where it is no regular file or no whole npz of plain numbers and texts.
    """
    with bounds.open_regular(path) as file:
        return parse_npz(file, limit)


def parse_npz(file: BinaryIO, limit: int = bounds.ARRAYS_BYTES) -> Arrays:
    """Every array of an npz file, by name.

    Args:
        limit: bytes of all arrays together.

    Raises:
        DAMAGED: one of these errors, where it is no whole npz of plain numbers and texts.
    """
    total = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        bounds.require(len(members), bounds.ARRAYS, "its arrays are", "take another file")
        names: set[str] = set()
        claimed = 0
        for member in members:
            if member.filename in names or not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename!r:.100} is no array, or there twice")
            if member.compress_size > total:
                raise ValueError(f"{member.filename!r:.100} is longer than the file")
            names.add(member.filename)
            with archive.open(member) as stream:
                head, held = _header(cast(BinaryIO, stream))
            claimed = bounds.require(claimed + held, limit, "the bytes of its arrays are", "take fewer or smaller ones")
            if member.file_size != head + held:
                raise ValueError(f"{member.filename!r:.100} has another length than its header says")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _header(stream: BinaryIO) -> tuple[int, int]:
    """Bytes of the header of a npy file, and of the array that it describes."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("an array does not start as npy files do")
    width, kind = (2, "<H") if magic[6] == 1 else (4, "<I")
    (length,) = struct.unpack(kind, stream.read(width))
    bounds.require(length, bounds.ARRAY_HEADER_BYTES, "the bytes of an array's header are", "take another file")
    described = ast.literal_eval(stream.read(length).decode("latin1").strip())
    if not isinstance(described, dict) or not isinstance(described.get("shape"), tuple):
        raise ValueError("an array has no shape")
    if not isinstance(described.get("descr"), str):
        raise ValueError("an array holds something else than numbers or texts")
    dtype = np.dtype(described["descr"])
    if dtype.kind not in "biufSU":
        raise ValueError(f"an array holds {dtype}, no numbers or texts")
    return 8 + width + length, bounds.array_bytes(described["shape"], dtype.itemsize)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array of the archive; ValueError where its member holds more bytes than the array."""
    with archive.open(member) as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(cast(BinaryIO, stream), allow_pickle=False)
        if stream.read(1):  # at the end zipfile compares the checksum
            raise ValueError(f"{member.filename!r:.100} goes on after its array")
    return array
