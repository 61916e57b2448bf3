"""Single samples, from encoded bytes to pixels, as worker processes make them."""

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from typing_extensions import Self

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.images import FORMATS, Transform, decode

MAX_BAD_IN_A_ROW = 100
"""Bad images in a row that end the run: they mean a broken disk, not a few bad files."""


@dataclass(frozen=True, kw_only=True)
class Files(ABC):
    """Encoded images, in files or shards, and their labels. Small when pickled: workers get a copy."""

    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def take(self, index: npt.NDArray[np.int64]) -> Self:
        """The images at `index`, in that order."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Bytes of one encoded image; OSError if it cannot be read."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The path of an image, or another name for it, for messages."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """An unreadable image, and why it cannot be read."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """uint8 pixels_CHW and label; pixels are None where no image was readable."""

    pixels: Tensor | None
    label: int
    bad: Bad | None = None
    """The bad image, even if a good image replaced it."""


@dataclass(frozen=True, kw_only=True)
class EvalSamples:
    """Samples by index; a bad image has no pixels."""

    files: Files
    transform: Transform

    def __getitem__(self, index: int) -> Sample:
        image = _decode(self.files, index)
        label = int(self.files.labels[index])
        if isinstance(image, Bad):
            return Sample(pixels=None, label=label, bad=image)
        return Sample(pixels=self.transform(image), label=label)


@dataclass(frozen=True, kw_only=True)
class TrainSamples:
    """Samples by position in one epoch; augmentation depends on (seed, position) alone."""

    files: Files
    transform: Transform
    order: Tensor
    """int64 image index by position; MAX_BAD_IN_A_ROW longer than the epoch."""
    seed: int
    skip_bad: bool
    """Whether the next good image of the order replaces a bad image."""

    def __getitem__(self, position: int) -> Sample:
        first_bad = None
        for index in self.order[position : position + (MAX_BAD_IN_A_ROW if self.skip_bad else 1)].tolist():
            image = _decode(self.files, index)
            if not isinstance(image, Bad):
                with seeded(self.seed, position):
                    pixels = self.transform(image)
                return Sample(pixels=pixels, label=int(self.files.labels[index]), bad=first_bad)
            first_bad = first_bad or image
        return Sample(pixels=None, label=-1, bad=first_bad)


def shuffled(count: int, length: int, seed: int) -> Tensor:
    """int64 indices below `count`: one permutation after the other until there are `length`."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(count, generator=generator) for _ in range(-(-length // count))]
    return torch.cat(passes)[:length]


def _decode(files: Files, index: int) -> Image.Image | Bad:
    """An image as RGB, or why it cannot be read."""
    try:
        return decode(files.read(index))
    except UnidentifiedImageError:
        reason = f"not an image, or of another format than {', '.join(FORMATS)}"
    except OSError as error:
        reason = error.strerror or str(error)
    except SbsError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything for damaged bytes
        reason = f"{type(error).__name__}: {error}"
    return Bad(where=files.where(index), reason=reason)


@contextlib.contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """Seed torch's CPU generator by (seed, position) for the block, and restore it afterwards."""
    # torch.manual_seed would seed GPUs as well, which a worker must not touch.
    generator = torch.default_generator
    state = generator.get_state()
    mixed = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=7).digest()
    generator.manual_seed(int.from_bytes(mixed, "big"))
    try:
        yield
    finally:
        generator.set_state(state)
