"""Shards whose headers claim what they do not hold: each is refused within 2 GiB and 20 seconds, in one line."""

import io
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load, load_dataset
from sbs_train.inputs.data.shards import shard_files
from tests.bounded import bounded
from tests.sbs_train.inputs.pictures import encoded, picture


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(load, "CACHE", cache)
    return cache


def member(name, data=b"", *, size=None, kind=tarfile.REGTYPE, declared=None):
    """One header and its data; `declared` is put into the size field as it is."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if declared is not None:
        head[124:136] = declared
        head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:512]))
    return bytes(head) + data + bytes(-len(data) % 512)


def sample(key="a", cls=b"0", image=None):
    return member(f"{key}.cls", cls) + member(f"{key}.jpg", encoded(picture(0)) if image is None else image)


def base256(number):
    """How GNU tar writes sizes that octal digits cannot hold."""
    sign = 0xFF if number < 0 else 0x80
    return bytes([sign]) + (number % (1 << 88)).to_bytes(11, "big")


END = bytes(1024)
LONG = tarfile.GNUTYPE_LONGNAME
HOSTILE = {
    "a name of gigabytes": member("././@LongLink", kind=LONG, declared=base256(1 << 40)),
    "a name of 8 GiB": member("././@LongLink", kind=LONG, declared=b"77777777777\0"),
    "attributes of gigabytes": member("./PaxHeaders/a", kind=tarfile.XHDTYPE, declared=base256(1 << 35)),
    "attributes of less than nothing": member("./PaxHeaders/a", kind=tarfile.XHDTYPE, declared=base256(-512)),
    "a name of 100,000 characters": member("././@LongLink", b"a/" * 50_000 + b".jpg\0", kind=LONG) + sample(),
    "a size below zero": sample() + member("b.jpg", declared=base256(-1024)),
    "a size far below zero": sample() + member("b.txt", declared=base256(-(1 << 60))),
    "a size that leads to the start": sample() + member("b.txt", declared=base256(-len(sample()) - 512)),
    "an image beyond the end": sample(key="b") + member("a.cls", b"0") + member("a.jpg", size=1 << 33),
    "an image of gigabytes": member("a.cls", b"0") + member("a.jpg", declared=base256(1 << 40)),
    "ten thousand long names": member("././@LongLink", b"x\0", kind=LONG) * 10_000,
    "holes": member("a.cls", b"0") + member("a.jpg", b"x" * 512, kind=tarfile.GNUTYPE_SPARSE),
    "gzip": b"\x1f\x8b" + bytes(1000),
    "a page": b"<html>" + b"x" * 1000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_header_gets_no_more_than_the_shard_holds(what, tmp_path):
    (tmp_path / "a.tar").write_bytes(HOSTILE[what] + sample("z") + END)
    said = bounded(load_dataset, f"wds:{tmp_path}/a.tar")
    assert said.startswith("refused: ") and "a.tar" in said and "again" in said and "\n" not in said, said


@pytest.mark.parametrize(
    "label",
    [b"", b" ", b"one", b"-1", b"1.0", b"1e3", b"0x1", b"1 2", b"1000000", b"9" * 30, b"0" * 30 + b"1", b"\xd9\xa1"],
)
def test_a_class_is_a_number_in_few_digits(label, tmp_path):
    (tmp_path / "a.tar").write_bytes(sample(cls=label) + END)
    with pytest.raises(SbsError, match=r"a\.tar: a\.cls holds .*must hold a class, counted from 0"):
        load_dataset(f"wds:{tmp_path}/a.tar")


def test_a_slip_in_a_class_makes_no_network_of_a_million_classes(tmp_path):
    many = b"".join(sample(str(number), b"%d" % (number % 3)) for number in range(30))
    (tmp_path / "a.tar").write_bytes(many + sample("z", b"900000") + END)
    with pytest.raises(SbsError, match="class 900000 among 31 images; classes count from 0"):
        load_dataset(f"wds:{tmp_path}/a.tar")
    (tmp_path / "a.tar").write_bytes(many + sample("z", b"999") + END)
    assert load_dataset(f"wds:{tmp_path}/a.tar").num_classes == 1000


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "/dev/zero"])
def test_a_shard_is_a_regular_file(kind, tmp_path):
    path = tmp_path / "a.tar"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else kind)
    said = bounded(load_dataset, f"wds:{path}")
    assert said.startswith("refused: ") and "a.tar" in said, said


def test_a_shard_that_becomes_a_fifo_is_not_waited_for(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(sample(str(number)) for number in range(9)) + END)
    data = load_dataset(f"wds:{path}", workers=0)
    path.unlink()
    os.mkfifo(path)
    said = bounded(lambda: list(data.eval_batches(data.val)))
    assert said.startswith("refused: ") and "not a regular file" in said


def test_eps_in_a_shard_is_given_to_nobody(tmp_path):
    eps = encoded(picture(0), "eps")
    (tmp_path / "a.tar").write_bytes(b"".join(sample(str(number), image=eps) for number in range(9)) + END)
    data = load_dataset(f"wds:{tmp_path}/a.tar", workers=0)
    said = bounded(lambda: list(data.eval_batches(data.val)))
    assert said.startswith("refused: ") and "not an image, or of another format" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(offsets=arrays["offsets"] + (1 << 40)),
        lambda arrays: arrays.update(sizes=-arrays["sizes"]),
        lambda arrays: arrays.update(labels=arrays["labels"][:3]),
        lambda arrays: arrays.update(labels=arrays["labels"].astype(float)),
        lambda arrays: arrays.update(labels=arrays["labels"] + 5_000_000),
        lambda arrays: arrays.update(names=arrays["labels"]),
        lambda arrays: arrays.update({name: array[:, None] for name, array in arrays.items()}),
    ],
)
def test_a_kept_index_that_does_not_fit_is_made_again(change, tmp_path, cache):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(sample(str(number)) for number in range(9)) + END)
    expected = shard_files([path], cache)
    (kept,) = (cache / "indices").glob("*.npz")
    with np.load(kept) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(kept, **arrays)
    found = shard_files([path], cache)
    for name in ("labels", "offsets", "sizes", "names"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=150, deadline=2000)
@given(changes=st.lists(st.tuples(st.integers(0, 3071), st.integers(0, 255)), max_size=4), seal=st.booleans())
def test_altered_headers_lead_to_one_line(changes, seal, tmp_path_factory):
    raw = bytearray(sample() + sample("b", b"1") + END)
    for place, byte in changes:
        raw[place] = byte
    if seal:  # a checksum that fits, so that the rest is believed
        raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    path = tmp_path_factory.mktemp("shards") / "a.tar"
    path.write_bytes(bytes(raw))
    try:
        files = shard_files([path], path.parent)
    except SbsError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert all(files.offsets + files.sizes <= len(raw)) and files.labels.max() < 1_000_000


def test_a_tar_of_any_format_is_read(tmp_path):
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=kind, pax_headers={"comment": "x"}) as archive:
            for number in range(5):
                for suffix, data in (("jpg", encoded(picture(number))), ("cls", b"%d\n" % number)):
                    info = tarfile.TarInfo(f"{'long/' * 18}{'größe' * (kind != tarfile.USTAR_FORMAT)}{number}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        assert shard_files([path], tmp_path / "cache").labels.tolist() == list(range(5))
