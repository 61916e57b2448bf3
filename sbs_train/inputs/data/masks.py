"""Images with a class for every pixel: DIR/{train,val}/{images,masks}, a mask named like its image.

A mask is an 8-bit picture of one channel (grey or palette) whose values are class numbers; 255 counts for nothing.
The number of classes is that of the lines of DIR/classes.txt, or else one more than the largest number in train/masks.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sbs_train.contract import bounds
from sbs_train.contract.console import print_progress
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.files import HELD_OUT
from sbs_train.inputs.data.images import FORMATS, IMAGENET_MEAN, IMAGENET_STD, SUFFIXES, decode
from sbs_train.inputs.data.interface import CPU, fixed_order, normalised
from sbs_train.inputs.data.loader import load
from sbs_train.inputs.data.samples import seeded, shuffled

IGNORED = 255
"""The value of mask pixels that count for nothing."""
Pair = tuple[Path, Path]
"""An image and its mask."""
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From pixels_CHW and mask_HW of any size to those of the network's input."""


@dataclass(frozen=True, kw_only=True)
class MaskSamples:
    """uint8 pixels_CHW and mask_HW by position; with a seed, augmentation depends on (seed, position) alone."""

    pairs: Sequence[Pair]
    order: Tensor
    transform: Transform
    num_classes: int
    seed: int | None = None

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        image, mask = read_pair(*self.pairs[int(self.order[position])], self.num_classes)
        if self.seed is None:
            return self.transform(image, mask)
        with seeded(self.seed, position):
            return self.transform(image, mask)


@dataclass(frozen=True, kw_only=True)
class MaskData:
    """Images with masks in three splits, and batches of network inputs; see `Dataset` for ranks and order."""

    name: str
    input: InputSpec
    num_classes: int
    train: Sequence[Pair]
    val: Sequence[Pair]
    test: Sequence[Pair]
    workers: int
    device: torch.device = CPU
    rank: int = 0
    world: int = 1

    def placed(self, device: torch.device, rank: int = 0, world: int = 1) -> "MaskData":
        """This data set for process `rank` of `world`; batches are copied to `device`."""
        return replace(self, device=device, rank=rank, world=world)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of full batches in the training split, at least 1."""
        return max(1, len(self.train) // batch_size)

    def train_batches(
        self, batch_size: int, seed: int, steps: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random crops, mirrored at random, as (x_NCHW, y_NHW), in an order that depends on `seed` alone."""
        samples = MaskSamples(
            pairs=self.train,
            order=shuffled(len(self.train), steps * batch_size, seed),
            transform=train_transform(self.input.height),
            num_classes=self.num_classes,
            seed=seed,
        )
        starts = range(first * batch_size, steps * batch_size, batch_size)
        return self._load(samples, [range(start + self.rank, start + batch_size, self.world) for start in starts])

    def eval_batches(self, split: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_NCHW, y_NHW) of this process's images of a split, in order: shorter side resized, centre cropped."""
        pairs = {"train": self.train, "val": self.val, "test": self.test}[split]
        samples = MaskSamples(
            pairs=pairs,
            order=torch.arange(len(pairs)),
            transform=eval_transform(self.input.height),
            num_classes=self.num_classes,
        )
        mine = range(self.rank, len(pairs), self.world)
        return self._load(samples, [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)])

    def _load(self, samples: MaskSamples, rows: Sequence[range]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, masks in load(samples, rows, _collate, workers=self.workers, pin=self.device.type == "cuda"):
            x_NCHW = normalised(images.to(self.device, non_blocking=True), self.input)
            yield x_NCHW, masks.to(self.device, non_blocking=True).long()


def mask_data(name: str, root: Path, *, image_size: int, workers: int) -> MaskData:
    """Open DIR/{train,val}/{images,masks}; a tenth of train is held out for validation, val is the test split.

    Raises:
        SbsError: a folder is missing or empty, an image has no mask, or too few images.
    """
    train, test = _pairs(root / "train"), _pairs(root / "val")
    held_out = min(-(-len(train) // 10), HELD_OUT)
    if len(train) <= held_out:
        raise SbsError(f"{root}: {len(train)} training images cannot be split; give 2 or more")
    order = fixed_order(len(train)).tolist()
    return MaskData(
        name=name,
        input=InputSpec(channels=3, height=image_size, width=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        num_classes=_classes(root, train),
        train=[train[i] for i in sorted(order[held_out:])],
        val=[train[i] for i in sorted(order[:held_out])],
        test=test,
        workers=workers,
    )


def read_pair(image: Path, mask: Path, num_classes: int) -> tuple[Tensor, Tensor]:
    """uint8 pixels_CHW and mask_HW of equal size.

    Raises:
        SbsError: a file cannot be read, sizes differ, or the mask holds a class of none.
    """
    try:
        pixels = np.asarray(decode(bounds.read_regular(image, bounds.IMAGE_BYTES, "make the image smaller")))
    except SbsError:
        raise
    except Exception as error:  # a decoder may raise anything for damaged bytes
        raise SbsError(f"{image} cannot be read ({type(error).__name__}: {error}); restore it") from error
    classes = read_mask(mask)
    if classes.shape != pixels.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (classes.shape, pixels.shape)]
        raise SbsError(f"{mask} is {sizes[0]}, its image {sizes[1]}; make them equal")
    found = int(classes[classes != IGNORED].max(initial=0))
    if found >= num_classes:
        raise SbsError(
            f"{mask} holds the class {found}, but there are {num_classes}: 0..{num_classes - 1}, and {IGNORED} for "
            f"pixels that count for nothing; mend the mask, or {image.parents[2]}/classes.txt"
        )
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(classes.copy())


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Class numbers (H, W) of a mask; SbsError if it is no 8-bit picture of one channel."""
    try:
        data = bounds.read_regular(path, bounds.IMAGE_BYTES, "make the mask smaller")
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            bounds.require(
                picture.width * picture.height, bounds.IMAGE_PIXELS, f"{path}: pixels are", "make it smaller"
            )
            if picture.mode not in ("L", "P", "1"):
                raise SbsError(f"{path} is of mode {picture.mode}; a mask is 8-bit grey or has a palette")
            values: npt.NDArray[np.uint8] = np.asarray(picture).astype(np.uint8)
    except SbsError:
        raise
    except Exception as error:  # a decoder may raise anything for damaged bytes
        raise SbsError(f"{path} cannot be read ({type(error).__name__}: {error}); restore it") from error
    return values


def train_transform(size: int) -> Transform:
    """A random part (a quarter to all of the area), resized to `size` pixels square and mirrored at random."""
    from torchvision.transforms import v2

    return _Joint(v2.Compose([v2.RandomResizedCrop(size, scale=(0.25, 1.0)), v2.RandomHorizontalFlip()]))


def eval_transform(size: int) -> Transform:
    """Resize the shorter side to `size` pixels, then crop the centre, `size` pixels square."""
    from torchvision.transforms import v2

    return _Joint(v2.Compose([v2.Resize(size), v2.CenterCrop(size)]))


@dataclass(frozen=True)
class _Joint:
    """One of torchvision's v2 transforms on an image and its mask together; masks keep their class numbers."""

    steps: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, pixels_CHW: Tensor, mask_HW: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision import tv_tensors

        image, mask = self.steps(tv_tensors.Image(pixels_CHW), tv_tensors.Mask(mask_HW))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(masks)


def _pairs(folder: Path) -> list[Pair]:
    """The images of a folder with their masks, by name."""
    images, masks = (_files(folder / name) for name in ("images", "masks"))
    if missing := sorted(images.keys() - masks.keys()):
        raise SbsError(f"{folder / 'masks'} has no mask for {images[missing[0]].name} ({len(missing)} are missing)")
    if lone := sorted(masks.keys() - images.keys()):
        raise SbsError(f"{folder / 'images'} has no image for the mask {masks[lone[0]].name}; take the mask away")
    return [(images[name], masks[name]) for name in sorted(images)]


def _files(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by name without suffix."""
    if not folder.is_dir():
        raise SbsError(f"{folder} is not there; the data set must hold {{train,val}}/{{images,masks}}")
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in SUFFIXES)
    except OSError as error:
        raise SbsError(f"{folder} cannot be read ({error.strerror}); allow it, or name another directory") from error
    for path in paths:
        if path.stem in found:
            raise SbsError(f"{folder} holds {found[path.stem].name} and {path.name}; keep one of each name")
        found[path.stem] = path
    if not found:
        raise SbsError(f"{folder} holds no pictures: {', '.join(SUFFIXES)}")
    return found


def _classes(root: Path, train: Sequence[Pair]) -> int:
    names = root / "classes.txt"
    if names.is_file():
        text = bounds.read_regular(names, bounds.JSON_BYTES, "give one class a line").decode(errors="replace")
        count = sum(1 for line in text.splitlines() if line.strip())
    else:
        print_progress(
            f"{root}: counting the classes of {len(train)} masks; {names.name} with one name a line saves that"
        )
        masks = (read_mask(mask) for _, mask in train)
        count = 1 + max(int(values[values != IGNORED].max(initial=0)) for values in masks)
    if not 2 <= count <= IGNORED:
        raise SbsError(f"{root}: {count} classes; a segmentation needs 2 to {IGNORED}")
    return count
