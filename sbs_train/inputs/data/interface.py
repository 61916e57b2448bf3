"""The base class of all data sets, in memory or in files.

Processes that train together each take a part of every batch. A sample and its augmentation depend on the seed and on
the sample's position in the epoch, never on the number of processes or workers: one process and eight train on the
same batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from sbs_train.contract.plan import InputSpec

CPU = torch.device("cpu")
SPLIT_SEED = 20230101
"""Seed of the splits, independent of a run's seed, so that runs stay comparable."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of a data set: int64 labels_N in order; subclasses add the images."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Three splits, and batches of network inputs from their images.

    The validation split decides every choice (snapshot, early stopping); the test split is only reported.
    """

    name: str
    input: InputSpec
    num_classes: int
    train: Split
    val: Split
    test: Split
    device: torch.device = CPU
    """Device of the batches."""
    rank: int = 0
    """Rank of this process among `world`; the process gets rows rank, rank + world, … of every global batch."""
    world: int = 1

    @abstractmethod
    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> Self:
        """This data set for process `rank` of `world`, with batches on `device`."""

    @abstractmethod
    def train_batches(
        self, batch_size: int, seed: int, steps: int | None = None, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled, augmented (x_NCHW, y_N), in an order that depends on `seed` alone.

        Args:
            batch_size: samples of all processes together; this process gets every `world`-th row.
            steps: number of batches; may exceed the split, which is then shuffled again. None for one pass.
            first: index of the first batch, to resume inside an epoch; skipped batches cost nothing.
        """

    @abstractmethod
    def eval_batches(self, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_NCHW, y_N) of this process's images (every `world`-th) of a split, in order.

        Together the processes see every image once. Where bad images are skipped, all batches together hold fewer
        images than `len(split)`.

        Args:
            batch_size: most images in one batch of this process.
        """

    @property
    def bad_images(self) -> int:
        """How often this process met an unreadable image since the data set was opened.

        The number grows during training and evaluation; a run's count is the sum over its processes.
        """
        return 0

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of full batches in the training split, at least 1."""
        return max(1, len(self.train) // batch_size)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """float32 network inputs (N, C, H, W) of uint8 images."""
        return normalised(images_NCHW, self.input)


def normalised(images_NCHW: Tensor, input: InputSpec) -> Tensor:
    """float32 network inputs (N, C, H, W) of uint8 images."""
    mean, std = (torch.tensor(v, device=images_NCHW.device).view(1, -1, 1, 1) for v in (input.mean, input.std))
    return (images_NCHW.float() / 255 - mean) / std


def fixed_order(count: int) -> Tensor:
    """The permutation that splits are cut from; equal in all runs."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
