"""Data sets by name."""

from pathlib import Path

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.urls import shown
from sbs_train.inputs.data.builtin import digits, fashion_mnist
from sbs_train.inputs.data.cifar import CIFAR10, CIFAR100, cifar
from sbs_train.inputs.data.files import Reading, file_dataset
from sbs_train.inputs.data.folder import folder_files
from sbs_train.inputs.data.interface import Dataset
from sbs_train.inputs.data.loader import default_workers
from sbs_train.inputs.data.masks import MaskData, mask_data
from sbs_train.inputs.data.samples import Files
from sbs_train.inputs.data.shards import ShardFiles, shard_files
from sbs_train.inputs.data.urls import local_shards

CACHE = Path.home() / ".cache" / "sbs"
MANY_CLASSES = 1000
"""Most classes without images, as in a few shards of ImageNet; more point to a wrong .cls file."""
NAMES = "digits, fashion-mnist, cifar10, cifar100, imagenet, folder:PATH, wds:URLS"


def dataset_of(config: TrainConfig) -> Dataset:
    """The data set that a run's settings name; SbsError as in `load_dataset`."""
    return load_dataset(
        config.data,
        config.data_dir,
        test_shards=config.test_shards,
        image_size=config.image_size,
        workers=config.workers,
        skip_bad_images=config.skip_bad_images,
    )


def masks_of(config: TrainConfig) -> MaskData:
    """The images with masks that a run's settings name; SbsError for another form than `folder:DIR`."""
    kind, _, place = config.data.partition(":")
    if kind != "folder" or not place:
        raise SbsError(
            f"--task segmentation needs --data folder:DIR with {{train,val}}/{{images,masks}}, not {shown(config.data)}"
        )
    root = (config.data_dir or Path()) / Path(place).expanduser()
    workers = default_workers() if config.workers is None else config.workers
    return mask_data(shown(config.data), root, image_size=config.image_size, workers=workers)


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    *,
    test_shards: str | None = None,
    image_size: int = 224,
    workers: int | None = None,
    skip_bad_images: bool = False,
) -> Dataset:
    """A data set by name.

    Args:
        data_dir: directory of the files; for `folder:` and `wds:` the base of relative paths, and the directory for
            copies of shards from a server.
        test_shards: shards of the test set, for `wds:`; None takes a part of the training set.
        image_size: pixels of a side of the network's input, for images in files.
        workers: processes that read images in files; None chooses by the cores of this machine.
        skip_bad_images: leave out and count unreadable images in files.

    Raises:
        SbsError: unknown name, missing directory, or a damaged file.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise SbsError(f"--data-dir {data_dir} is not a directory; name the one that holds the data set's files")
    if test_shards is not None and not name.startswith("wds:"):
        raise SbsError(f"--test-shards belongs to --data wds:URLS, not to {shown(name)}; leave it out")
    processes = default_workers() if workers is None else workers
    reading = Reading(image_size=image_size, workers=processes, skip_bad_images=skip_bad_images)
    kind, _, place = name.partition(":")
    if name == "digits":
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(data_dir, CACHE)
    if name in ("cifar10", "cifar100"):
        return cifar(CIFAR10 if name == "cifar10" else CIFAR100, data_dir, CACHE)
    if name == "imagenet":
        if data_dir is None:
            raise SbsError("--data imagenet needs --data-dir, the directory that holds train/CLASS/… and val/CLASS/…")
        return file_dataset(shown(name), *folder_files(data_dir), reading)
    if kind == "folder" and place:
        return file_dataset(shown(name), *folder_files((data_dir or Path()) / Path(place).expanduser()), reading)
    if kind == "wds" and place:
        return file_dataset(shown(name), *_shards(place, test_shards, data_dir), reading)
    raise SbsError(f"unknown data set {shown(name)}; choose one of {NAMES}")


def _shards(urls: str, test_urls: str | None, data_dir: Path | None) -> tuple[Files, Files | None, int]:
    """(training samples, test samples or None without test shards, number of classes)."""

    def files(urls: str) -> ShardFiles:
        return shard_files(local_shards(urls, data_dir or Path(), copies=(data_dir or CACHE) / "shards"), CACHE)

    train = files(urls)
    num_classes = int(train.labels.max()) + 1
    if num_classes > max(MANY_CLASSES, len(train)):
        raise SbsError(
            f"wds:{shown(urls)}: class {num_classes - 1} among {len(train)} images; classes count from 0, check the "
            ".cls files"
        )
    if test_urls is None:
        return train, None, num_classes
    test = files(test_urls)
    if test.labels.max() >= num_classes:
        raise SbsError(
            f"--test-shards {shown(test_urls)} holds class {test.labels.max()}, but the training shards only "
            f"0..{num_classes - 1}; check that they belong together"
        )
    return train, test, num_classes
