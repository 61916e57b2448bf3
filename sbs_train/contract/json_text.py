"""JSON from unknown sources, parsed within bounds.

Python's parser accepts NaN, keeps only the last of repeated keys, accepts numbers that no float holds, and builds
millions of empty lists from a small file.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sbs_train.contract.bounds import JSON_VALUES

_LARGEST = 2**64


def parse_json(text: bytes) -> Any:
    """The value of a document in UTF-8.

    Raises:
        ValueError: says what is wrong, in a few words.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise ValueError(f"it has more than {JSON_VALUES} values")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats, parse_int=_int)
        for where in _not_finite(value):
            raise ValueError(f"{where}: not a finite number")
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError if a key is repeated."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands in it twice")
    return value


def _int(digits: str) -> int:
    """A JSON integer; ValueError if its magnitude is 2^64 or more."""
    if len(digits) > 20 or not -_LARGEST < (value := int(digits)) < _LARGEST:
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _not_finite(value: Any) -> Iterator[str]:
    """Paths (a.b.0, or "it" for the whole value) of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        yield "it"
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(part, float | dict | list):
                for where in _not_finite(part):
                    yield str(key)[:80] if where == "it" else f"{str(key)[:80]}.{where}"
