"""What tasks on images with classes share: batches of (x_NCHW, classes) that ranks and micro-batches divide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from sbs_train.contract.plan import InputSpec
from sbs_train.tasks.protocol import Share

Batch = tuple[Tensor, Tensor]
"""x_NCHW, and the classes of the images (N) or of their pixels (N, H, W)."""


class ImageData(Protocol):
    """A data set of such batches."""

    @property
    def input(self) -> InputSpec: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> Any: ...

    def train_batches(self, batch_size: int, seed: int, steps: int, *, first: int = 0) -> Iterator[Batch]: ...


Data = TypeVar("Data", bound=ImageData)


@dataclass(frozen=True, kw_only=True)
class ImageTask(Generic[Data]):
    """The part of `Divided` that does not depend on what is learned."""

    data: Data
    batch_size: int
    """Images of a batch, of all ranks together."""
    label_smoothing: float = 0.0
    """Part of the target that every class gets in training."""
    share: Share = field(default_factory=Share)

    @property
    def arguments(self) -> dict[str, int]:
        """What the builder of a network by name has to know."""
        return {"num_classes": self.data.num_classes}

    @property
    def input(self) -> InputSpec:
        """Shape and normalisation of an image."""
        return self.data.input

    def steps_per_epoch(self) -> int:
        """Full batches of the training split, at least 1."""
        return self.data.steps_per_epoch(self.batch_size)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled, augmented images with their classes."""
        return self.batches(seed, self.steps_per_epoch())

    def inputs(self, batch: Batch) -> Tensor:
        """x_NCHW."""
        return batch[0]

    def shared(self, share: Share) -> Self:
        """This task for one rank; see `Divided`."""
        return replace(self, data=self.data.placed(share.device, share.rank, share.world), share=share)

    def batches(self, seed: int, steps: int, *, first: int = 0) -> Iterator[Batch]:
        """This rank's part of the batches `first` to `steps`; see `Divided`."""
        return self.data.train_batches(self.batch_size, seed, steps, first=first)

    def parts(self, batch: Batch, count: int) -> Sequence[Batch]:
        """A batch in `count` micro-batches."""
        return list(zip(*(part.chunk(count) for part in batch), strict=True))

    def blank(self, samples: int) -> Tensor:
        """x_NCHW of zeros."""
        spec = self.data.input
        return torch.zeros(samples, spec.channels, spec.height, spec.width, device=self.data.device)

    def joined(self, losses: Sequence[Tensor]) -> Tensor:
        """`loss_N` of several batches, in float64."""
        if not losses:
            return torch.zeros(0, dtype=torch.float64, device=self.data.device)
        return torch.cat([loss_N.double() for loss_N in losses])

    @property
    def rank_batch(self) -> int:
        """This rank's images of a batch."""
        return max(1, self.batch_size // self.share.world)
