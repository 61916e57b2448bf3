"""One image, from the bytes of its file to the pixels of the network's input.

Decoding gives 8-bit RGB: upright, on white, and with its whole range of grey. torchvision's v2 transforms then crop,
resize and mirror the image, as usual for ImageNet.

Pillow's own `convert("RGB")` clips 16-bit grey to white, shows the colours of transparent pixels, and ignores the EXIF
orientation.
"""

import contextlib
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from sbs_train.contract import bounds

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats: for others Pillow starts programs (Ghostscript for EPS) or has little-used decoders."""
SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
"""Suffixes of images in folders and shards; the format itself is recognised by a file's first bytes."""
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

Transform = Callable[[Image.Image], Tensor]
"""A function from an RGB image to uint8 pixels_CHW of the network's input size."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn for each EXIF orientation. Pillow's `ImageOps.exif_transpose` fails on damaged EXIF data."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def decode(data: bytes) -> Image.Image:
    """The first frame of an encoded image as RGB, turned as its EXIF orientation says.

    Grey levels of 12 or 16 bits are scaled to 8 bits, transparent pixels become white, colour profiles are not
    applied.

    Raises:
        UnidentifiedImageError: the format is none of FORMATS.
        ValueError: too many pixels, or grey levels whose range is not known.
        Exception: a decoder may raise anything for damaged bytes.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        bounds.require(image.width * image.height, bounds.IMAGE_PIXELS, "its pixels are", "make the image smaller")
        image.load()
        rgb = _rgb(image)
        orientation = None
        with contextlib.suppress(Exception):  # damaged EXIF data: no turn
            orientation = image.getexif().get(_ORIENTATION)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded image as RGB, transparent pixels on white; ValueError for grey of 32 bits."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"grey of {image.mode} (32 bits) has no known black and white; write it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _grey(image: Image.Image) -> Image.Image:
    """8-bit grey from an image with 12 or 16 bits; transparent pixels become white."""
    levels: npt.NDArray[np.uint32] = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_BITS_PER_SAMPLE, (16,))[0] == 12 else 16
    white = (1 << bits) - 1
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = white - levels
    grey = Image.fromarray(((levels * 255 + white // 2) // white).astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.paste(255, mask=Image.fromarray(np.asarray(image) == hidden))
    return grey


def train_transform(size: int) -> Transform:
    """A random part of the image (8 to 100 % of its area), resized to `size` pixels square and mirrored at random."""
    from torchvision.transforms import v2

    steps: Transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return steps


def eval_transform(size: int) -> Transform:
    """Resize the shorter side to `size` * 256 / 224 pixels, then crop the centre, `size` pixels square."""
    from torchvision.transforms import v2

    steps: Transform = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
    return steps
