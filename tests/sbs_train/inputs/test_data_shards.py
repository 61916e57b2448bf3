"""WebDataset shards, written by the webdataset package and read by it for comparison."""

import gzip
import io
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch
import webdataset

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load, load_dataset
from sbs_train.inputs.data.shards import shard_files
from tests.sbs_train.inputs.pictures import encoded, picture

COUNT = 12
"""Samples of a shard."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(load, "CACHE", path)
    return path


def write(directory, shards=2, start=0, classes=3, **extra):
    for number in range(shards):
        with webdataset.TarWriter(str(directory / f"part-{start + number:03d}.tar")) as writer:
            for index in range(COUNT):
                seed = (start + number) * COUNT + index
                kind = ("jpg", "png")[seed % 2]
                picture_ = encoded(picture(seed), "jpeg" if kind == "jpg" else "png")
                writer.write(
                    {"__key__": f"{seed:05d}", kind: picture_, "cls": seed % classes, "json": {"a": 1}, **extra}
                )
    return directory


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def opened(place, **options):
    return load_dataset(f"wds:{place}", image_size=14, workers=0, **options)


def test_it_reads_what_webdataset_reads(tmp_path, cache):
    write(tmp_path, 3)
    paths = [tmp_path / f"part-{number:03d}.tar" for number in range(3)]
    ours = shard_files(paths, cache)
    theirs = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert len(ours) == len(theirs) == 3 * COUNT
    for index, sample in enumerate(theirs):
        assert ours.read(index) == sample.get("jpg", sample.get("png"))
        assert ours.labels[index] == int(sample["cls"])
        assert ours.where(index).partition(":")[2].startswith(sample["__key__"])
    taken = ours.take(np.array([30, 2]))
    assert [taken.read(0), taken.read(1)] == [ours.read(30), ours.read(2)]


def test_a_part_of_the_shards_validates_and_another_one_tests(tmp_path):
    data = opened(write(tmp_path) / "part-{000..001}.tar")
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (18, 3, 3, 3)
    names = [split.files.where(i) for split in (data.train, data.val, data.test) for i in range(len(split))]
    assert len(set(names)) == 24
    (x_NCHW, y_N), *rest = data.train_batches(9, 0)
    assert x_NCHW.shape == (9, 3, 14, 14) and len(rest) == 1
    seen = torch.cat([y_N, rest[0][1]])
    assert seen.bincount().tolist() == data.train.labels.bincount().tolist()


def test_test_shards_test(tmp_path):
    write(tmp_path, 3)
    data = opened("part-{000..001}.tar", data_dir=tmp_path, test_shards="part-002.tar")
    assert (len(data.train), len(data.val), len(data.test)) == (21, 3, COUNT)
    assert all("part-002.tar:" in data.test.files.where(index) for index in range(COUNT))
    assert data.test.labels.tolist() == [seed % 3 for seed in range(24, 36)]
    assert torch.cat([y for _, y in data.eval_batches(data.test, 5)]).tolist() == data.test.labels.tolist()


def test_shards_are_listed_as_webdataset_lists_them(tmp_path):
    write(tmp_path, 3)
    data = opened(f"{tmp_path}/part-000.tar::{tmp_path}/part-{{001..002}}.tar")
    assert len(data.train) + len(data.val) + len(data.test) == 3 * COUNT


def test_classes_that_training_never_saw_are_refused(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 1, start=1, classes=5)
    with pytest.raises(SbsError, match=r"holds class 4, but the training shards only 0..2"):
        opened(tmp_path / "part-000.tar", test_shards=str(tmp_path / "part-001.tar"))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("trap",)


def test_pickles_in_a_shard_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil())
    data = opened(write(tmp_path, 1, **{"pyd": evil, "pickle": evil, "pth": evil}) / "part-000.tar")
    assert sum(len(y) for split in (data.val, data.test) for _, y in data.eval_batches(split)) == 4
    list(data.train_batches(4, 0))
    assert not (tmp_path / "trap").exists()


def test_samples_are_grouped_by_key(tmp_path, cache):
    image = encoded(picture(0))
    files = [
        ("README", b"not a sample"),
        ("__meta__/about.json", b"{}"),
        ("a/01.CLS", b"7\n"),
        ("a/01.seg.png", b"another picture"),
        ("a/01.JPG", image),
        ("b/01.jpg", image + b"x"),
        ("b/01.cls", b"0"),
    ]
    found = shard_files([write_tar(tmp_path / "a.tar", files)], cache)
    assert found.labels.tolist() == [7, 0]
    assert [found.read(0), found.read(1)] == [image, image + b"x"]
    assert found.where(0) == f"{tmp_path}/a.tar:a/01.JPG"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.jpg", b"x")], "sample a has no .cls with its class"),
        ([("a.cls", b"0"), ("a.json", b"{}")], r"sample a has no image \(jpg, png, …\)"),
        ([("a.jpg", b"x"), ("b.cls", b"0")], "sample a has no .cls"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], r"a.cls holds b'cat'; it must hold a class"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], r"a.cls holds b'-1'"),
        ([("a.jpg", b"x"), ("a.cls", b"9" * 19)], "a.cls holds"),
        ([], "no samples in 1 shards"),
        ([("README", b"hello")], "no samples"),
    ],
)
def test_what_is_no_sample_is_named(files, message, tmp_path, cache):
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(SbsError, match=f"a.tar: {message}") as caught:
        shard_files([path], cache)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[: 3 * 512 + 100],
        lambda raw: raw[: len(raw) // 2 + 77],
        gzip.compress,
        lambda raw: b"",
        lambda raw: b"<html>not found</html>" * 100,
    ],
)
def test_a_damaged_shard_is_named(change, tmp_path):
    path = write(tmp_path, 1) / "part-000.tar"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SbsError, match="part-000.tar is damaged, or compressed .*get it again or gunzip it"):
        opened(path)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(SbsError, match=r"part-002.tar cannot be read \(No such file or directory\); .* --data"):
        opened(write(tmp_path) / "part-{000..002}.tar")


def test_a_damaged_image_in_a_shard_is_named_or_skipped(tmp_path):
    path = write(tmp_path, 1) / "part-000.tar"
    data = opened(path, skip_bad_images=True)
    name = data.test.files.where(0)
    raw = bytearray(path.read_bytes())
    start = int(data.test.files.offsets[0])
    raw[start : start + 40] = bytes(40)
    path.write_bytes(raw)
    assert sum(len(y) for _, y in data.eval_batches(data.test)) == len(data.test) - 1 and data.bad_images == 1
    data = opened(path)
    with pytest.raises(SbsError, match=f"{name} cannot be read .*not an image"):
        list(data.eval_batches(data.test))


def test_a_shard_that_shrinks_during_the_run_is_named(tmp_path):
    path = write(tmp_path, 1) / "part-000.tar"
    data = opened(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SbsError, match="part-000.tar:.* cannot be read .*the shard was cut short"):
        list(data.train_batches(10, 0, 1))


def test_an_index_is_kept_until_the_shard_changes(tmp_path, cache, monkeypatch):
    path = write(tmp_path, 1) / "part-000.tar"
    first = shard_files([path], cache)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_: pytest.fail("the shard was read again"))
        again = shard_files([path], cache)
    for field in ("labels", "offsets", "sizes", "names"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    write(tmp_path, 1, classes=2)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert set(shard_files([path], cache).labels) == {0, 1}


def test_a_damaged_index_is_made_again(tmp_path, cache):
    path = write(tmp_path, 1) / "part-000.tar"
    first = shard_files([path], cache)
    (kept,) = (cache / "indices").iterdir()
    for raw in (b"", b"hello", kept.read_bytes()[:300], pickle.dumps(Evil())):
        kept.write_bytes(raw)
        assert np.array_equal(shard_files([path], cache).offsets, first.offsets)


def test_without_a_place_to_keep_it_the_index_is_made_anyway(tmp_path):
    path = write(tmp_path, 1) / "part-000.tar"
    (tmp_path / "file").write_text("")
    assert len(shard_files([path], tmp_path / "file")) == COUNT
