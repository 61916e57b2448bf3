"""Data sets in memory: real digits, and Fashion-MNIST's file format written by hand."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load_dataset


def write_idx(path, array, compress):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz" * compress).write_bytes(gzip.compress(raw) if compress else raw)


CPU = torch.device("cpu")
SMALL = load_dataset("digits")


@pytest.fixture(params=[True, False], ids=["gz", "plain"])
def fashion(tmp_path, request):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 120), ("t10k", 30)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)), request.param)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", rng.integers(0, 10, count), request.param)
    return tmp_path


def test_fashion_mnist_files_are_read_and_split(fashion):
    data = load_dataset("fashion-mnist", fashion)
    assert (len(data.train), len(data.val), len(data.test)) == (110, 10, 30)
    expected = np.random.default_rng(0).integers(0, 256, (120, 28, 28))
    seen = torch.cat([data.train.images, data.val.images]).sum((1, 2, 3)).sort().values
    assert seen.tolist() == sorted(expected.sum((1, 2)).tolist())


def test_a_truncated_file_is_refused(fashion):
    path = next(fashion.glob("t10k-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SbsError, match="get the file again"):
        load_dataset("fashion-mnist", fashion)


def test_a_missing_file_is_named(fashion):
    next(fashion.glob("train-labels*")).unlink()
    with pytest.raises(SbsError, match=r"train-labels-idx1-ubyte.*--data-dir"):
        load_dataset("fashion-mnist", fashion)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(SbsError, match="nowhere is not a directory"):
        load_dataset("digits", tmp_path / "nowhere")


def test_an_unknown_name_is_refused():
    with pytest.raises(SbsError, match="digits, fashion-mnist"):
        load_dataset("imagenet22k")


def test_digits_are_split_once_for_all():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert (len(first.train), len(first.val), len(first.test)) == (1257, 180, 360)
    assert torch.equal(first.test.images, second.test.images)
    keys = [hash(image.numpy().tobytes()) for s in (first.train, first.val, first.test) for image in s.images]
    assert len(set(keys)) >= len(keys) - 2  # the original holds a pair of equal pictures


def test_normalisation_gives_zero_mean_and_unit_deviation():
    data = load_dataset("digits")
    x = data.normalise(data.train.images)
    assert abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 1) < 0.1


def test_batches_depend_on_the_seed_alone():
    data = load_dataset("digits")
    first, second, third = (list(data.train_batches(64, seed, 25)) for seed in (3, 3, 4))
    assert len(first) == 25  # more than one epoch holds
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], third[0][0])


def test_a_resumed_epoch_goes_on_where_it_was():
    whole, rest = list(SMALL.train_batches(64, 3, 25)), list(SMALL.train_batches(64, 3, 25, first=21))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[21:], rest, strict=True))


def test_augmentation_only_shifts():
    data = load_dataset("digits")
    image = data.train.images[:1]
    draws = [data._draw(1, torch.Generator().manual_seed(seed)) for seed in range(200)]
    seen = {tuple(data._augment(image, *draw).flatten().tolist()) for draw in draws}
    shifts = {
        tuple(
            torch.roll(torch.nn.functional.pad(image, (1, 1, 1, 1)), (i, j), (2, 3))[..., 1:-1, 1:-1].flatten().tolist()
        )
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    }
    assert seen == shifts


def test_evaluation_sees_every_image_once():
    data = load_dataset("digits")
    labels = torch.cat([y for _, y in data.eval_batches(data.test, 77)])
    assert torch.equal(labels, data.test.labels)


@settings(max_examples=25)
@given(world=st.integers(1, 5), batch_size=st.integers(5, 40), steps=st.integers(1, 4), seed=st.integers(0, 99))
def test_processes_share_every_batch_out_among_them(world, batch_size, steps, seed):
    parts = [SMALL.placed(CPU, rank, world).train_batches(batch_size, seed, steps) for rank in range(world)]
    for (x_NCHW, y_N), *shares in zip(SMALL.train_batches(batch_size, seed, steps), *parts, strict=True):
        for rank, (x_part, y_part) in enumerate(shares):
            assert torch.equal(x_part, x_NCHW[rank::world]) and torch.equal(y_part, y_N[rank::world])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_evaluate_every_image_once(world):
    shares = [torch.cat([y for _, y in SMALL.placed(CPU, r, world).eval_batches(SMALL.test, 50)]) for r in range(world)]
    merged = torch.empty(len(SMALL.test), dtype=torch.int64)
    for rank, share in enumerate(shares):
        merged[rank::world] = share
    assert torch.equal(merged, SMALL.test.labels)


def test_pixels_in_memory_are_never_bad():
    assert SMALL.bad_images == 0


def test_test_shards_are_for_shards():
    with pytest.raises(SbsError, match="--test-shards belongs to --data wds:URLS"):
        load_dataset("digits", test_shards="a.tar")


@pytest.mark.parametrize("name", ["folder", "folder:", "wds:", "cifar", "imagenet21k"])
def test_half_a_name_is_refused(name):
    with pytest.raises(SbsError, match="choose one of digits, .*wds:URLS"):
        load_dataset(name)


def test_no_batch_is_smaller_than_asked_for_whatever_the_remainder():
    data = load_dataset("digits")
    for size in (len(data.train) - 1, (len(data.train) - 1) // 2, len(data.train) + 1):
        assert {len(y) for _, y in data.train_batches(size, 0)} == {size}
