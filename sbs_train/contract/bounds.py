"""How much a file from elsewhere may ask for: every reader compares with a limit of this module before it allocates.

A file of 300 bytes can claim an array of gigabytes, a name can stand for a hundred million shards, and a FIFO named
like an image never ends. The limits are far above what real models and data sets need.
"""

import contextlib
import errno
import gzip
import io
import os
import resource
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sbs_train.contract.errors import SbsError

MIB = 1 << 20
GIB = 1 << 30

IMAGE_BYTES = 512 * MIB
"""Bytes of one encoded image."""
IMAGE_PIXELS = 1 << 27
"""Pixels of one image: 134 megapixels, more than a camera has. They take 0.5 GiB decoded."""
ARRAYS_BYTES = GIB
"""Bytes of all arrays in one file that is read into memory whole: an idx file, golden.npz, model.slim.npz."""
INDEX_BYTES = 16 * GIB
"""Bytes of the arrays that say where the images of one shard lie."""
ARRAYS = 100_000
"""Arrays in one npz file."""
ARRAY_HEADER_BYTES = 10_000
"""Bytes of the text that says an array's shape and type."""
PICKLE_BYTES = 256 * MIB
"""Bytes of one CIFAR file; the largest real file has 155 MB."""
PICKLE_STEPS = 600_000
"""Instructions of one pickle; CIFAR-100 needs 350,000."""
FOLDER_DEPTH = 32
"""Levels of folders below the folder of a class."""
SHARDS = 300_000
"""Shards that are named by one --data or --test-shards; the largest public data sets have 230,000."""
SHARD_NAME = 1000
"""Characters of a shard's name, braces included."""
SHARD_HEADER_BYTES = MIB
"""Bytes of the headers before a file in a shard: a long name, extended attributes."""
CLASSES = 1_000_000
"""Classes that the samples of a shard may have."""
MEMBER_NAME = 4096
"""Characters of the name of a file in a shard."""
DOWNLOAD_BYTES = 64 * GIB
"""Bytes of one shard from a server; webdataset's authors advise 1 to 10 GB."""
REPLY_SECONDS = 20
"""Seconds that a server may take for the start of an answer, and for each next `REPLY_BYTES`."""
REPLY_BYTES = 64 << 10
"""Bytes that a server has to send within `REPLY_SECONDS`."""
FILE_BYTES = 8 * GIB
"""Bytes of one file of a run that is read whole: weights, an engine. Two billion float32 weights take 8 GiB."""
CHECKPOINT_BYTES = 32 * GIB
"""Bytes of one checkpoint: the weights, the optimizer's moments and the best weights so far."""
TENSORS_HEADER_BYTES = 16 * MIB
"""Bytes of the names, types and shapes in a safetensors file: about 100 bytes a tensor."""
JSON_BYTES = 64 * MIB
"""Bytes of one JSON document."""
JSON_VALUES = 1 << 21
"""Commas and brackets in one JSON document, which are about as many as its values."""
BUNDLE_BYTES = 2 * GIB - 1
"""Bytes of all files in one bundle: ZIP needs an extension for more."""
BUNDLE_LIST_BYTES = 64 << 10
"""Bytes of the list of the files in a bundle."""
ONNX_BYTES = 2 * GIB - 1
"""Bytes of one ONNX model with all its weights: the limit of protobuf."""
NODES = 1_000_000
"""Operators of one ONNX model, after its functions were put in their places."""
FUNCTION_DEPTH = 100
"""Levels of functions of an ONNX model that call one another."""
CONSTANT_BYTES = 256 * MIB
"""Bytes of one tensor that an ONNX graph computes from constants alone (ConstantOfShape), or that is sparse."""
INFERENCE_BYTES = GIB
"""Bytes of memory that onnx may take to find the shapes in a graph, besides the graph."""
TENSOR_BYTES = 256 * MIB
"""Bytes of one input or output of an ONNX model that is run only to compare two models."""


@contextlib.contextmanager
def memory(limit: int) -> Iterator[None]:
    """Limit the memory of this process inside the block to `limit` more bytes; beyond, code raises MemoryError."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + limit
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def require(value: int, limit: int, what: str, remedy: str) -> int:
    """`value`, if it lies in 0..`limit`.

    Raises:
        SbsError: `what` is negative or too large; the message names the limit and the remedy.
    """
    if not 0 <= value <= limit:
        # The message shows no number of a thousand digits.
        claimed = f"{value:,}" if abs(value) < 1 << 64 else f"{'-' * (value < 0)}2^{abs(value).bit_length() - 1}"
        raise SbsError(f"{what} {claimed}, and may be at most {limit:,}; {remedy}")
    return value


def array_bytes(shape: Sequence[object], itemsize: int) -> int:
    """Bytes of an array of this shape, whose elements have `itemsize` bytes. Python's integers do not overflow.

    Raises:
        ValueError: a size is no whole number, or negative.
    """
    total = itemsize
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"{size!r:.40} is no size of an array")
        total *= size
    return total


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file, or a link to a regular file, for reading; opening a FIFO could block forever.

    Raises:
        OSError: the path cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path, limit: int, remedy: str) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: it cannot be opened, or is something else.
        SbsError: it has more than `limit` bytes.
    """
    with open_regular(path) as file:
        size = require(os.fstat(file.fileno()).st_size, limit, f"{path}: the bytes of the file are", remedy)
        return file.read(size)  # Python allocates what is asked for, before it reads


def gunzip(data: bytes, limit: int) -> bytes:
    """The first `limit` + 1 bytes of what a gzip file holds, or all if there are fewer.

    Raises:
        OSError: it is no gzip, or damaged.
        EOFError: it was cut short.
        zlib.error: it is damaged.
    """
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(min(MIB, limit + 1 - len(found))):
            found += chunk
    return bytes(found)
