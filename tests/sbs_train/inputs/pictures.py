"""Pictures in real file formats, and files that end a worker; workers import this module."""

import io
import os
import signal
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sbs_train.inputs.data.samples import Files


def picture(seed, height=20, width=24):
    """A smooth picture: noise would not survive JPEG."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))


def encoded(image, kind="jpeg"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, *, classes=("ant", "bee"), train=15, val=3, kind="jpeg"):
    """root/train/CLASS/N.jpeg and root/val/CLASS/N.jpeg; every picture is another one."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            directory = root / split / name
            directory.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if split == "val" else 0)
                (directory / f"{number:03d}.{kind}").write_bytes(encoded(picture(seed), kind))
    return root


@dataclass(frozen=True, kw_only=True)
class Fatal(Files):
    """The worker that reads one is killed."""

    def take(self, index):
        return type(self)(labels=self.labels[index])

    def read(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

    def where(self, index):
        return f"image {index}"


@dataclass(frozen=True, kw_only=True)
class Memory(Files):
    """Encoded images that lie in no file."""

    images: tuple[bytes, ...]

    def take(self, index):
        return type(self)(labels=self.labels[index], images=tuple(self.images[i] for i in index))

    def read(self, index):
        return self.images[index]

    def where(self, index):
        return f"image {index}"
