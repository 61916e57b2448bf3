"""Data sets in memory, with one tensor of pixels per split."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.interface import Dataset, Split


@dataclass(frozen=True, kw_only=True)
class MemorySplit(Split):
    """uint8 images_NCHW and int64 labels_N."""

    images: Tensor

    def __getitem__(self, index: Tensor | slice) -> "MemorySplit":
        """Images and labels at `index`, a slice or a tensor."""
        return MemorySplit(images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device) -> "MemorySplit":
        """A copy of the split on `device`."""
        return MemorySplit(images=self.images.to(device), labels=self.labels.to(device))


def checked(
    split: MemorySplit, where: Path, shape: tuple[int, int, int], num_classes: int, *, least: int = 1
) -> MemorySplit:
    """Return a split after checks of its images and labels.

    Args:
        where: the file or directory of the split, for messages.
        shape: channels, height and width of each image.
        least: the fewest images that the split may have.

    Raises:
        SbsError: too few images, images of another shape or type, or labels outside of 0..`num_classes` - 1.
    """
    images, labels = split.images, split.labels
    again = "get the files again, or name the right directory with --data-dir"
    if len(images) < least or tuple(images.shape[1:]) != shape or images.dtype != torch.uint8:
        found, wanted = (" x ".join(map(str, size)) for size in (images.shape[1:], shape))
        raise SbsError(f"{where}: {len(images)} images of {found}; it must hold {least} or more of {wanted}; {again}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise SbsError(f"{where}: {len(images)} images but {len(labels)} labels; {again}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise SbsError(f"{where}: labels {labels.min()}..{labels.max()} must lie in 0..{num_classes - 1}; {again}")
    return split


@dataclass(frozen=True, kw_only=True)
class MemoryDataset(Dataset):
    """A data set in memory; training images are shifted and mirrored at random, evaluation images unchanged."""

    shift: int
    """Largest random shift of a training image, in pixels; uncovered pixels are black."""
    flip: bool
    """Whether training images are mirrored at random."""
    train: MemorySplit
    val: MemorySplit
    test: MemorySplit

    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> Self:
        """This data set for process `rank` of `world`, held on `device`."""
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test, device=device, rank=rank, world=world)

    def train_batches(
        self, batch_size: int, seed: int, steps: int | None = None, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, shifted and mirrored images; see `Dataset.train_batches`."""
        generator = torch.Generator().manual_seed(seed)
        steps = self.steps_per_epoch(batch_size) if steps is None else steps
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(self.train), generator=generator)])
            index, order = order[:batch_size], order[batch_size:]
            # Every process draws for the whole batch, so that all generators stay equal.
            mirrored, top, left = self._draw(batch_size, generator)
            if step < first:
                continue
            rows = slice(self.rank, None, self.world)
            part = self.train[index[rows].to(self.train.labels.device)]
            yield self.normalise(self._augment(part.images, mirrored[rows], top[rows], left[rows])), part.labels

    def eval_batches(self, split: Split, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Unchanged images; see `Dataset.eval_batches`."""
        assert isinstance(split, MemorySplit)
        mine = split[self.rank :: self.world]
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            yield self.normalise(part.images), part.labels

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """mirrored_N, top_N and left_N: random mirroring and shift of each image of a batch."""
        mirrored = torch.zeros(count, dtype=torch.bool)
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
        top, left = torch.randint(0, 2 * self.shift + 1, (2, count), generator=generator)
        return mirrored, top, left

    def _augment(self, images: Tensor, mirrored: Tensor, top: Tensor, left: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        device, shift = images.device, self.shift
        mirrored, top, left = (draw.to(device).view(-1, 1, 1, 1) for draw in (mirrored, top, left))
        images = torch.where(mirrored, images.flip(3), images)
        padded = F.pad(images, (shift, shift, shift, shift))
        rows = top + torch.arange(height, device=device).view(1, 1, -1, 1)
        columns = left + torch.arange(width, device=device).view(1, 1, 1, -1)
        batch = torch.arange(count, device=device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
        return padded[batch, channel, rows, columns]
