"""Image folders: small pictures in real formats, read by PIL and NumPy for comparison."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load_dataset
from sbs_train.inputs.data.samples import MAX_BAD_IN_A_ROW, Bad, _decode
from tests.sbs_train.inputs.pictures import Memory, encoded, picture, write_folder

CPU = torch.device("cpu")


def opened(root, **options):
    return load_dataset(f"folder:{root}", **{"image_size": 14, "workers": 0, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), kind="png")


def damage(split, *indices):
    """Cut files short, as a full disk leaves them; returns their paths."""
    paths = [split.files.where(index) for index in indices]
    for path in paths:
        with open(path, "rb+") as file:
            file.truncate(len(file.read()) // 2)
    return paths


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_files_are_split_once_for_all(root):
    data, again = opened(root), opened(root)
    assert (len(data.train), len(data.val), len(data.test), data.num_classes) == (27, 3, 6, 2)
    theirs = ImageFolder(str(root / "train")).samples
    ours = [(s.files.where(i), int(s.labels[i])) for s in (data.train, data.val) for i in range(len(s))]
    assert sorted(ours) == theirs
    assert [data.val.files.where(i) for i in range(3)] == [again.val.files.where(i) for i in range(3)]
    theirs = ImageFolder(str(root / "val")).samples
    assert [(data.test.files.where(i), int(data.test.labels[i])) for i in range(6)] == theirs


def test_evaluation_takes_the_centre(root):
    data = opened(root)
    (x_NCHW, y_N), (rest, _) = data.eval_batches(data.test, 4)
    assert x_NCHW.shape == (4, 3, 14, 14) and x_NCHW.dtype == torch.float32 and len(rest) == 2
    assert y_N.tolist() == [0, 0, 0, 1]
    for index, x_CHW in enumerate(x_NCHW):
        image = Image.open(data.test.files.where(index))  # 24 x 20: the shorter side becomes 16
        image = image.resize((19, 16), Image.Resampling.BILINEAR).crop((2, 1, 16, 15))
        pixels = np.asarray(image, np.float64) / 255
        expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(x_CHW.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (192, 219), (240, 274)])
def test_photographs_are_resized_as_usual(size, resized):
    from sbs_train.inputs.data.images import eval_transform

    steps = eval_transform(size).transforms
    assert (steps[0].size, tuple(steps[1].size)) == ([resized], (size, size))


def test_training_takes_random_parts_and_mirrors_half(tmp_path):
    # Red grows to the right, green downwards: a crop tells where it was taken from.
    rows, columns = np.mgrid[0:64, 0:64].astype(np.uint8)
    image = Image.fromarray(np.stack([4 * columns, 4 * rows, 0 * rows], 2))
    write_folder(tmp_path, classes=("ramp",), train=3, val=1, kind="png")
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(encoded(image, "png"))
    data = opened(tmp_path, image_size=16)
    x_NCHW = torch.cat([x for x, _ in data.train_batches(50, 0, 4)])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.input.mean, data.input.std))
    red, green, _ = ((x_NCHW * std + mean) * 255).unbind(1)
    width, height = ((red[:, 8, 15] - red[:, 8, 0]) / 60, (green[:, 15, 8] - green[:, 0, 8]) / 60)  # of 4 · 16 - 4
    assert (height > 0).all() and 0.35 < float((width < 0).float().mean()) < 0.65
    area = (width.abs() / 4) * (height / 4)
    assert 0.05 < float(area.min()) < 0.2 and 0.8 < float(area.max()) < 1.05


def test_batches_depend_on_the_seed_alone(root):
    data = opened(root)
    assert same(data.train_batches(8, 3, 5), data.train_batches(8, 3, 5))
    assert same(data.train_batches(8, 3, 2), list(data.train_batches(8, 3, 5))[:2])
    assert same(data.train_batches(8, 3, 5, first=3), list(data.train_batches(8, 3, 5))[3:])
    assert not same(data.train_batches(8, 3, 2), data.train_batches(8, 4, 2))
    assert len(list(data.train_batches(8, 3))) == data.steps_per_epoch(8) == 3
    whole = torch.cat([y for _, y in data.train_batches(9, 0, 3)])
    assert whole.bincount().tolist() == data.train.labels.bincount().tolist()


def test_the_same_image_is_cropped_anew_in_every_epoch(root):
    data = opened(root)
    first, second = (torch.cat([x for x, _ in data.train_batches(27, seed)]) for seed in (0, 1))
    nearest = (first[:, None] - second[None]).abs().mean((2, 3, 4)).min(1).values
    assert float(nearest.min()) > 0


def test_nobody_else_draws_other_numbers(root):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(opened(root).train_batches(8, 3, 2))
    assert torch.equal(torch.rand(3), expected)


@settings(max_examples=15)
@given(world=st.integers(1, 4), batch_size=st.integers(4, 12), steps=st.integers(1, 4), seed=st.integers(0, 99))
def test_processes_share_every_batch_out_among_them(root, world, batch_size, steps, seed):
    data = opened(root, image_size=4)
    parts = [data.placed(CPU, rank, world).train_batches(batch_size, seed, steps) for rank in range(world)]
    for (x_NCHW, y_N), *shares in zip(data.train_batches(batch_size, seed, steps), *parts, strict=True):
        for rank, (x_part, y_part) in enumerate(shares):
            assert torch.equal(x_part, x_NCHW[rank::world]) and torch.equal(y_part, y_N[rank::world])


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_evaluate_every_image_once(root, world):
    data = opened(root)
    ((whole, _),) = data.eval_batches(data.test)
    for rank in range(world):
        share = [x for x, _ in data.placed(CPU, rank, world).eval_batches(data.test, 2)]
        assert all(len(x) <= 2 for x in share)  # a seventh process gets no batch at all
        assert torch.equal(torch.cat([*share, whole[:0]]), whole[rank::world])


def test_a_damaged_image_is_named(tmp_path):
    data = opened(write_folder(tmp_path))
    (path,) = damage(data.train, 4)
    with pytest.raises(SbsError, match=f"{path} cannot be read .*[Tt]runcated.*--skip-bad-images"):
        list(data.train_batches(9, 0, 3))
    (path,) = damage(data.test, 1)
    with pytest.raises(SbsError, match=f"{path} cannot be read"):
        list(data.eval_batches(data.test))


def test_a_missing_image_is_named(tmp_path):
    data = opened(write_folder(tmp_path))
    (tmp_path / "val/bee/001.jpeg").unlink()
    with pytest.raises(SbsError, match=r"val/bee/001.jpeg cannot be read \(No such file or directory\); restore it"):
        list(data.eval_batches(data.test))


def test_the_next_good_image_replaces_a_bad_one_in_training(tmp_path, capfd):
    data = opened(write_folder(tmp_path), skip_bad_images=True)
    before = [(x.clone(), y) for x, y in data.train_batches(9, 7, 3)]
    assert data.bad_images == 0
    damage(data.train, 3, 11)
    after = list(data.train_batches(9, 7, 3))
    assert data.bad_images == 2
    assert "2 bad images replaced by the next ones of the order; one is " in capfd.readouterr().err
    assert [len(y) for _, y in after] == [9, 9, 9]
    changed = [int((a[0] != b[0]).any((1, 2, 3)).sum()) for a, b in zip(before, after, strict=True)]
    assert sum(changed) == 2
    parts = [data.placed(CPU, rank, 2) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert same(part.train_batches(9, 7, 3), [(x[rank::2], y[rank::2]) for x, y in after])
    assert sum(part.bad_images for part in parts) == 2


def test_evaluation_leaves_bad_images_out(tmp_path, capfd):
    data = opened(write_folder(tmp_path), skip_bad_images=True)
    whole = torch.cat([x for x, _ in data.eval_batches(data.test)])
    damage(data.test, 0, 1, 5)
    seen = list(data.eval_batches(data.test, 2))
    assert [len(y) for _, y in seen] == [2, 1] and data.bad_images == 3  # nothing is left of the first two
    assert torch.equal(torch.cat([x for x, _ in seen]), whole[2:5])
    assert "3 bad images left out" in capfd.readouterr().err


def test_a_broken_disk_is_not_skipped(tmp_path):
    data = opened(write_folder(tmp_path), skip_bad_images=True)
    damage(data.test, *range(6))
    with pytest.raises(SbsError, match="not one of 6 images can be read, first .*/val/ant/000"):
        list(data.eval_batches(data.test))


def test_a_broken_disk_ends_training(tmp_path):
    data = opened(write_folder(tmp_path), skip_bad_images=True)
    damage(data.train, *range(len(data.train)))
    with pytest.raises(SbsError, match=f"{MAX_BAD_IN_A_ROW} images in a row cannot be read, first .*check the disk"):
        list(data.train_batches(4, 0, 1))


@settings(max_examples=60)
@given(kind=st.sampled_from(["jpeg", "png", "gif", "webp", "bmp"]), changes=st.data())
def test_damaged_bytes_are_an_image_or_a_reason(kind, changes):
    raw = bytearray(encoded(picture(0), kind))
    for _ in range(changes.draw(st.integers(0, 5))):
        raw[changes.draw(st.integers(0, len(raw) - 1))] = changes.draw(st.integers(0, 255))
    raw = bytes(raw[: changes.draw(st.integers(0, len(raw)))])
    found = _decode(Memory(labels=np.zeros(1, np.int64), images=(raw,)), 0)
    assert isinstance(found, Image.Image) or (isinstance(found, Bad) and found.reason)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_image_becomes_rgb(mode):
    image = picture(0).convert("L").convert("I").convert("I;16") if mode == "I;16" else picture(0).convert(mode)
    raw = encoded(image, "tiff")
    assert _decode(Memory(labels=np.zeros(1, np.int64), images=(raw,)), 0).mode == "RGB"


def test_names_are_any_bytes(tmp_path):
    write_folder(tmp_path)
    for number, name in enumerate(("größe", "象", "a b", "caf\udce9")):
        (tmp_path / "val/ant" / f"{name}.JPEG").write_bytes(encoded(picture(number)))
    data = opened(tmp_path)
    assert len(data.test) == 10 == sum(len(y) for _, y in data.eval_batches(data.test))


def test_imagenet_is_a_folder(root):
    data = load_dataset("imagenet", root, image_size=14, workers=0)
    assert (data.name, data.input.height, len(data.test)) == ("imagenet", 14, 6)
    assert same(data.eval_batches(data.test), opened(root).eval_batches(data.test))
    with pytest.raises(SbsError, match="--data imagenet needs --data-dir"):
        load_dataset("imagenet")
    assert load_dataset("imagenet", root).input.height == 224


def test_relative_folders_lie_in_the_data_directory(root):
    assert len(load_dataset(f"folder:{root.name}", root.parent).test) == 6


def remove(path):
    if path.is_dir():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: remove(root / "val"), "val is not there; the data set must hold train/CLASS"),
        (lambda root: remove(root / "train"), "train is not there"),
        (
            lambda root: [remove(root / "val" / name) for name in ("ant", "bee")],
            "holds no folders; .*one for each class",
        ),
        (lambda root: [remove(p) for p in (root / "train/bee").iterdir()], "every class needs at least one image"),
        (lambda root: (root / "val/bee").rename(root / "val/wasp"), "val/wasp: .*train has no such class"),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_refused(change, message, tmp_path):
    change(write_folder(tmp_path))
    with pytest.raises(SbsError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_may_be_missing_from_the_test_set(tmp_path):
    remove(write_folder(tmp_path) / "val/ant")
    data = opened(tmp_path)
    assert data.num_classes == 2 and data.test.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("train", "fits"), [(1, False), (2, True)])
def test_few_images_are_split_or_refused(train, fits, tmp_path):
    write_folder(tmp_path, classes=("ant",), train=train)
    if fits:
        assert (len(opened(tmp_path).train), len(opened(tmp_path).val)) == (1, math.ceil(train / 10))
    else:
        with pytest.raises(SbsError, match="1 training images cannot be split; give 2 or more"):
            opened(tmp_path)
