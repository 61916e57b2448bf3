"""What is not JSON, or too much of it, is refused in a few words."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.json_text import parse_json
from sbs_train.contract.rundir import read_json

KEYS = st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def finite(value) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@given(VALUES)
def test_json_is_read_and_numbers_that_are_none_are_not(value):
    text = json.dumps(value).encode()
    if finite(value):
        assert parse_json(text) == value
    else:
        with pytest.raises(ValueError, match="not a finite number"):
            parse_json(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "decode"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": 1, "a": 2}', "'a' stands in it twice"),
        (b'{"a": [{"b": NaN}]}', r"a\.0\.b: not a finite"),
        (b'{"a": 1e999}', "a: not a finite"),
        (b"-Infinity", "not a finite"),
        (b"1" * 400, "too large"),
        (b"1" * 5000, "too large"),
        (b"[" * 100_000, "too deep"),
        (b"[" + b"[]," * bounds.JSON_VALUES, "more than"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_fails_far_away_is_refused_here(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(SbsError, match=r"a\.json is damaged") as caught:
        read_json(path)
    assert len(str(caught.value)) < 500


def test_a_document_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SbsError, match=rf"a\.json.*at most {bounds.JSON_BYTES:,}"):
        read_json(path)
