"""Data sets that stay in files and are read during training: image folders and shards."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.images import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform
from sbs_train.inputs.data.interface import Dataset, Split, fixed_order
from sbs_train.inputs.data.loader import load_batches
from sbs_train.inputs.data.samples import (
    MAX_BAD_IN_A_ROW,
    Bad,
    EvalSamples,
    Files,
    TrainSamples,
    shuffled,
)

HELD_OUT = 10_000
"""Most images held out for validation: enough to tell accuracies 0.5 points apart."""


@dataclass(frozen=True, kw_only=True)
class FileSplit(Split):
    """A part of a data set whose encoded images are decoded on demand."""

    files: Files


@dataclass(kw_only=True)
class Tally:
    """Counter of bad images."""

    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings of reading images in files."""

    image_size: int
    """Pixels of a side of the network's input."""
    workers: int
    """Worker processes; 0 reads in this process."""
    skip_bad_images: bool
    """Whether images that cannot be read are left out and counted, instead of an error."""


@dataclass(frozen=True, kw_only=True)
class FileDataset(Dataset):
    """RGB images that worker processes read, decode and augment."""

    train: FileSplit
    val: FileSplit
    test: FileSplit
    reading: Reading
    tally: Tally = field(default_factory=Tally)

    @property
    def bad_images(self) -> int:
        """How often this process met an unreadable image; see `Dataset.bad_images`."""
        return self.tally.images

    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> Self:
        """This data set for process `rank` of `world`; batches are copied to `device`."""
        return replace(self, device=device, rank=rank, world=world, tally=Tally())

    def train_batches(
        self, batch_size: int, seed: int, steps: int | None = None, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random crops, mirrored at random; the next good image replaces a bad one. See `Dataset.train_batches`."""
        steps = self.steps_per_epoch(batch_size) if steps is None else steps
        samples = TrainSamples(
            files=self.train.files,
            transform=train_transform(self.input.height),
            order=shuffled(len(self.train), steps * batch_size + MAX_BAD_IN_A_ROW, seed),
            seed=seed,
            skip_bad=self.reading.skip_bad_images,
        )
        starts = range(first * batch_size, steps * batch_size, batch_size)
        rows = [range(start + self.rank, start + batch_size, self.world) for start in starts]
        return self._load(samples, rows)

    def eval_batches(self, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Centre crops; bad images are left out. See `Dataset.eval_batches`."""
        assert isinstance(split, FileSplit)
        samples = EvalSamples(files=split.files, transform=eval_transform(self.input.height))
        mine = range(self.rank, len(split), self.world)
        return self._load(samples, [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)])

    def _load(self, samples: EvalSamples | TrainSamples, rows: Sequence[range]) -> Iterator[tuple[Tensor, Tensor]]:
        met: list[Bad] = []
        images = 0
        for batch in load_batches(samples, rows, workers=self.reading.workers, pin=self.device.type == "cuda"):
            met += batch.bad
            self.tally.images += len(batch.bad)
            if batch.missing and not self.reading.skip_bad_images:
                bad = batch.bad[0]
                raise SbsError(
                    f"{bad.where} cannot be read ({bad.reason}); restore it, or leave bad images out by "
                    "--skip-bad-images"
                )
            if batch.missing and isinstance(samples, TrainSamples):
                bad = batch.bad[0]
                many = f"{MAX_BAD_IN_A_ROW} images in a row"
                raise SbsError(f"{many} cannot be read, first {bad.where} ({bad.reason}); check the disk")
            images += len(batch.labels)
            if len(batch.labels):
                x_NCHW = self.normalise(batch.images.to(self.device, non_blocking=True))
                yield x_NCHW, batch.labels.to(self.device, non_blocking=True)
        if met and not images:
            raise SbsError(
                f"{self.name}: not one of {len(met)} images can be read, first {met[0].where}; check the disk"
            )
        if met:
            what = "replaced by the next ones of the order" if isinstance(samples, TrainSamples) else "left out"
            print_progress(f"{self.name}: {len(met)} bad images {what}; one is {met[0].where} ({met[0].reason})")


def file_dataset(name: str, train: Files, test: Files | None, num_classes: int, reading: Reading) -> FileDataset:
    """Hold a part of `train` out for validation, and another one for the test unless there are test images.

    Each part is a tenth, at most HELD_OUT images, and equal in every run.

    Raises:
        SbsError: too few images.
    """
    held_out = min(math.ceil(len(train) / 10), HELD_OUT)
    parts = 1 if test is not None else 2
    if len(train) <= parts * held_out:
        raise SbsError(f"{name}: {len(train)} training images cannot be split; give {parts + 1} or more")
    order, size = fixed_order(len(train)).numpy(), reading.image_size
    # Sorted, so that evaluation reads neighbours one after the other.
    cuts = [np.sort(cut) for cut in np.split(order, [held_out * (part + 1) for part in range(parts)])]
    return FileDataset(
        name=name,
        input=InputSpec(channels=3, height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        num_classes=num_classes,
        train=_split(train.take(cuts[-1])),
        val=_split(train.take(cuts[0])),
        test=_split(train.take(cuts[1]) if test is None else test),
        reading=reading,
    )


def _split(files: Files) -> FileSplit:
    return FileSplit(labels=torch.from_numpy(files.labels), files=files)
