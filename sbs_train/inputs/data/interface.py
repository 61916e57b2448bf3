"""What every data set offers, whether it lies in memory or in files.

Processes that train together each take a part of every batch. What a sample is, and how it is augmented, depends on
the seed and on its position in the order of all, never on how many processes or workers there are: one process and
eight train on the same batches.
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
"""Splits do not depend on a run's seed: runs stay comparable."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of a data set: int64 labels_N, in order. Subclasses add the images."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Three splits and how their images become the network's input.

    The validation split makes every choice (snapshot, early stopping); the test set only reports.
    """

    name: str
    input: InputSpec
    num_classes: int
    train: Split
    val: Split
    test: Split
    device: torch.device = CPU
    """Where batches are delivered."""
    rank: int = 0
    """Which of `world` processes this one is; it gets rows rank, rank + world, … of every global batch."""
    world: int = 1

    @abstractmethod
    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> Self:
        """The same data for process `rank` of `world`, delivered on `device`."""

    @abstractmethod
    def train_batches(
        self, batch_size: int, seed: int, steps: int | None = None, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled, augmented (x_NCHW, y_N), in an order that depends on `seed` alone.

        Args:
            batch_size: of all processes together; this one gets every `world`-th row.
            steps: batches, if given: fewer than the split holds, or more, by shuffling again.
            first: the batch to begin with, for a run that goes on inside an epoch; the ones before it cost nothing.
        """

    @abstractmethod
    def eval_batches(self, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_NCHW, y_N) of this process's images (every `world`-th) of a split, in order.

        Together the processes see every image once. Where bad images are skipped, batches hold fewer images than
        `len(split)` says: count what comes.

        Args:
            batch_size: most images in one batch of this process.
        """

    @property
    def bad_images(self) -> int:
        """How often this process met an image that cannot be read, since the data set was opened.

        Grows during training and evaluation; over the processes, the sum is the count of the whole run.
        """
        return 0

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches that the training split holds, at least one."""
        return max(1, len(self.train) // batch_size)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """float32 network input of uint8 images."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.input.mean, device=images_NCHW.device).view(shape)
        std = torch.tensor(self.input.std, device=images_NCHW.device).view(shape)
        return (images_NCHW.float() / 255 - mean) / std


def fixed_order(count: int) -> Tensor:
    """The permutation that splits are cut from, the same for all runs."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
