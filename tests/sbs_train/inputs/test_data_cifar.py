"""CIFAR's files, in the layout and the pickle protocol of the originals; torchvision reads them too."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import load, load_dataset

ROWS = 20


def short(text):
    """How Python 2 pickles a short str."""
    return b"U" + bytes([len(text)]) + text.encode()


def python2_array(array):
    """A uint8 array as Python 2 and the NumPy of 2009 pickled it."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + short("u1") + b"K\x00K\x01tR(K\x03" + short("|") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\x00tb"
    raw = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short("b") + b"tR"
    return start + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"


def python2_batch(pixels, labels, key):
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    body = b"(" + short("data") + python2_array(pixels) + short(key) + numbers + b"u"
    return b"\x80\x02}" + body + b"."


def content(seed, classes):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, classes, ROWS).tolist()


def dump(protocol):
    return lambda pixels, labels, key: pickle.dumps({"data": pixels, key: labels, "filenames": ["a"]}, protocol)


WRITERS = {"python 2": python2_batch, **{f"protocol {number}": dump(number) for number in (0, 2, 4, 5)}}
SETS = {
    "cifar10": ("cifar-10-batches-py", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], "labels", 10),
    "cifar100": ("cifar-100-python", ["train", "test"], "fine_labels", 100),
}


def write(root, name, writer=python2_batch):
    folder, files, key, classes = SETS[name]
    (root / folder).mkdir()
    for seed, file in enumerate(files):
        (root / folder / file).write_bytes(writer(*content(seed, classes), key))
    return root / folder


@pytest.mark.parametrize("name", SETS)
def test_it_reads_what_torchvision_reads(name, tmp_path, monkeypatch):
    folder = write(tmp_path, name)
    theirs = getattr(datasets, name.upper())
    monkeypatch.setattr(theirs, "_check_integrity", lambda _: True)  # the originals' checksums
    monkeypatch.setattr(theirs, "_load_meta", lambda _: None)
    ours = load_dataset(name, tmp_path)
    assert ours.num_classes == SETS[name][3]
    test = theirs(str(tmp_path), train=False)
    assert np.array_equal(ours.test.images.permute(0, 2, 3, 1).numpy(), test.data)
    assert ours.test.labels.tolist() == test.targets
    train = theirs(str(tmp_path), train=True)
    assert len(ours.val) == len(train) // 10 and len(ours.train) == len(train) - len(ours.val)
    rows = [row for split in (ours.train, ours.val) for row in zip(split.images, split.labels, strict=True)]
    found = {(image.permute(1, 2, 0).numpy().tobytes(), int(label)) for image, label in rows}
    assert found == {(image.tobytes(), label) for image, label in zip(train.data, train.targets, strict=True)}
    assert torch.equal(load_dataset(name, folder).train.images, ours.train.images)  # --data-dir may name the folder


@pytest.mark.parametrize("writer", WRITERS)
def test_every_protocol_of_pickle_is_read(writer, tmp_path):
    write(tmp_path, "cifar100", WRITERS[writer])
    pixels, labels = content(1, 100)
    test = load_dataset("cifar100", tmp_path).test
    assert np.array_equal(test.images.reshape(ROWS, -1).numpy(), pixels) and test.labels.tolist() == labels


def test_training_images_are_padded_by_four_and_mirrored(tmp_path):
    write(tmp_path, "cifar10")
    data = load_dataset("cifar10", tmp_path)
    assert (data.shift, data.flip, data.input.height) == (4, True, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.input.mean, data.input.std))
    for x_NCHW, y_N in data.train_batches(10, 0, 2):
        pixels = (x_NCHW * std + mean) * 255
        for image, label in zip(pixels, y_N, strict=True):
            inside = image[:, 4:28, 4:28].round().to(torch.uint8)
            originals = data.train.images[data.train.labels == label]
            windows = torch.cat([originals, originals.flip(3)]).unfold(2, 24, 1).unfold(3, 24, 1)
            assert (windows == inside[None, :, None, None]).all(5).all(4).all(1).any()


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        lambda trap: (os.mkdir, trap),
        lambda trap: (eval, f"__import__('os').mkdir({trap!r})"),
        lambda trap: (np.save, trap, 1),
        lambda trap: (np.memmap, trap, "u1", "w+", 0, (1,)),
    ],
)
def test_no_function_in_a_file_is_called(call, protocol, tmp_path):
    folder = write(tmp_path, "cifar10")
    evil = {"data": Evil(*call(str(tmp_path / "trap"))), "labels": []}
    (folder / "data_batch_3").write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(
        SbsError, match=r"data_batch_3 is damaged \(UnpicklingError: it wants to load .*get CIFAR-10 again"
    ):
        load_dataset("cifar10", tmp_path)
    assert not list(tmp_path.glob("trap*"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "is damaged"),
        (lambda raw: b"", "is damaged"),
        (lambda raw: b"<html>not found</html>", "is damaged"),
        (lambda raw: pickle.dumps([1, 2]), "is damaged"),
        (lambda raw: dump(2)(*content(0, 200), "fine_labels"), "must lie in 0..99"),
        (lambda raw: dump(2)(np.zeros((2, 3072), np.uint8), [1], "fine_labels"), "does not hold"),
        (lambda raw: dump(2)(np.zeros((1, 3072)), [1], "fine_labels"), "does not hold"),
        (lambda raw: dump(4)(np.zeros((0, 3072), np.uint8), [], "fine_labels"), "does not hold"),
        (lambda raw: dump(2)(np.zeros((1, 3072), np.uint8), ["one"], "fine_labels"), "does not hold"),
    ],
)
def test_a_damaged_file_is_named(broken, message, tmp_path):
    path = write(tmp_path, "cifar100") / "train"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(SbsError, match=f"cifar-100-python/train.*{message}") as caught:
        load_dataset("cifar100", tmp_path)
    assert "again" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    (write(tmp_path, "cifar10") / "data_batch_2").unlink()
    with pytest.raises(SbsError, match="data_batch_2 is not there; get CIFAR-10 again"):
        load_dataset("cifar10", tmp_path)


def test_a_directory_without_the_set_is_named(tmp_path):
    with pytest.raises(SbsError, match="has no cifar-10-batches-py; .*--data-dir"):
        load_dataset("cifar10", tmp_path)


def test_what_is_nowhere_is_downloaded_to_the_cache_or_the_error_says_how(tmp_path, monkeypatch):
    asked = []

    def download(url, root, filename, md5):
        asked.append(url)
        if len(asked) == 1:
            raise OSError("no network")
        write(tmp_path, "cifar100")

    monkeypatch.setattr(load, "CACHE", tmp_path)
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    with pytest.raises(SbsError, match="CIFAR-100 is not on this machine .*cifar-100-python.tar.gz.*--data-dir"):
        load_dataset("cifar100")
    assert len(load_dataset("cifar100").test) == ROWS
    assert len(load_dataset("cifar100").test) == ROWS and len(asked) == 2
