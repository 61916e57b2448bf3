"""What can become of a file: bytes that are lost, flipped or new, and content that is well-formed and wrong."""

import copy
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sbs_deploy.export.codes import save_arrays
from sbs_train.contract import rundir

Corruption = Callable[[random.Random, bytes], bytes]

HOSTILE: list[Any] = [
    None,
    [],
    {},
    -1,
    0,
    1,
    0.5,
    1e308,
    float("nan"),
    2**70,
    10**400,
    True,
    "",
    "x",
    "../x",
    [[]],
    {"a": 1},
]


def signed(path: Path) -> None:
    """An altered file as one that was made so: what it holds is then judged, not its hash."""
    rundir.write_manifest(path, rundir.read_manifest(path).made_from)


def save_signed(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Other arrays in a file, as if it was made so."""
    made_from = rundir.read_manifest(path).made_from
    save_arrays(arrays, path)
    rundir.write_manifest(path, made_from)


def truncated(random: random.Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def replaced(random: random.Random, data: bytes) -> bytes:
    return random.randbytes(random.randrange(300))


def flipped(random: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwritten(random: random.Random, data: bytes) -> bytes:
    start, length = random.randrange(len(data)), random.randrange(1, 40)
    return data[:start] + random.randbytes(length) + data[start + length :]


def shifted(random: random.Random, data: bytes) -> bytes:
    """Bytes lost within."""
    start = random.randrange(len(data))
    return data[:start] + data[start + random.randrange(1, 40) :]


def wrong_content(random: random.Random, data: bytes) -> bytes:
    """JSON or npz that can be read and holds something else; other files with a flipped bit."""
    if data.startswith(b"PK\3\4"):
        return _wrong_arrays(random, data)
    try:
        value = json.loads(data)
    except ValueError:
        return flipped(random, data)
    return json.dumps(_wrong_value(random, value)).encode()


BYTES: tuple[Corruption, ...] = (truncated, replaced, flipped, overwritten, shifted)
"""Each gives other bytes, or by chance the same."""
ALL: tuple[Corruption, ...] = (*BYTES, wrong_content, wrong_content, wrong_content)


def _wrong_value(random: random.Random, value: Any) -> Any:
    """One value inside `value`, at random, replaced, removed or added."""
    places: list[tuple[Any, Any]] = []

    def visit(container: Any) -> None:
        for key in container if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            if isinstance(container[key], dict | list):
                visit(container[key])

    hostile = copy.deepcopy(random.choice(HOSTILE))
    if isinstance(value, dict | list):
        visit(value)
    if not places:
        return hostile
    container, key = random.choice(places)
    change = random.randrange(5)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container["unknown"] = hostile
    else:
        container[key] = hostile
    return value


def _wrong_arrays(random: random.Random, data: bytes) -> bytes:
    """One array of another shape or type, or none."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    key = random.choice(sorted(arrays))
    array = np.atleast_1d(arrays[key])
    wrong = random.choice(
        (
            None,
            array[:0],
            array[:-1],
            array[None],
            array.reshape(-1),
            np.float32(3),
            np.full(array.shape, "x"),
            np.full(array.shape, np.nan),
            np.full(array.shape, 300, np.int64),
            array.astype(np.complex64),
        )
    )
    arrays = {**arrays, key: wrong} if wrong is not None else {k: v for k, v in arrays.items() if k != key}
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()
