"""Limits are compared before anything is allocated; files that are no files are not waited for."""

import gzip
import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError


@given(value=st.integers(), limit=st.integers(0, 1 << 40))
def test_a_limit_is_named_in_one_short_line(value, limit):
    if 0 <= value <= limit:
        assert bounds.require(value, limit, "the images are", "take fewer") == value
    else:
        with pytest.raises(SbsError, match=f"{limit:,}; take fewer$") as caught:
            bounds.require(value, limit, "the images are", "take fewer")
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_of_any_length_is_refused(sign):
    value = sign * 10**5000
    with pytest.raises(SbsError, match=r"2\^16609"):
        bounds.require(value, 1, "the images are", "take fewer")


@given(shape=st.lists(st.integers(0, 1 << 70), max_size=8))
def test_sizes_of_arrays_do_not_overflow(shape):
    expected = 8
    for size in shape:
        expected *= size
    assert bounds.array_bytes(shape, 8) == expected


@pytest.mark.parametrize("size", [-1, 2.0, True, "3", None])
def test_sizes_of_arrays_are_whole_numbers(size):
    with pytest.raises(ValueError, match="no size of an array"):
        bounds.array_bytes((2, size), 1)


@given(
    parts=st.lists(st.binary(max_size=100), min_size=1, max_size=3), limit=st.integers(0, 300), zeros=st.integers(0, 9)
)
def test_gzip_is_unpacked_as_far_as_the_limit(parts, limit, zeros):
    packed = b"".join(map(gzip.compress, parts)) + bytes(zeros)
    whole = b"".join(parts)
    found = bounds.gunzip(packed, limit)
    assert found == whole[: limit + 1]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            bounds.open_regular(path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SbsError, match="at most 1,000; make it smaller"):
        bounds.read_regular(path, 1000, "make it smaller")
    path.write_bytes(bytes(1000))
    assert bounds.read_regular(path, 1000, "make it smaller") == bytes(1000)


def test_memory_is_limited_inside_alone():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), bounds.memory(bounds.MIB):
        bytearray(1 << 30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytearray(1 << 28)) == 1 << 28
