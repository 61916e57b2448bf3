"""Images of every mode, depth and orientation, compared with arithmetic on the pixels that were written."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.images import FORMATS, decode


def written(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def levels(seed, high, shape=(5, 7)):
    return np.random.default_rng(seed).integers(0, high, shape)


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(["png", "tiff", "ppm"]))
def test_sixteen_bits_of_grey_keep_their_range(seed, kind):
    grey = levels(seed, 1 << 16)
    found = pixels(written(Image.fromarray(grey.astype(np.uint16)), kind))
    expected = np.round(grey / 257)
    assert np.abs(found - expected[:, :, None]).max() <= (kind == "ppm")  # Pillow cuts PPM's off, if anything


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_bytes_of_sixteen_bits_come_in_either_order(order):
    grey = levels(0, 1 << 16)
    dtype = ">u2" if order == "I;16B" else "<u2"
    image = Image.frombytes(order, (7, 5), grey.astype(dtype).tobytes())
    np.testing.assert_array_equal(pixels(written(image, "tiff"))[:, :, 1], np.round(grey / 257))


def tiff(grey, bits, *, photometric=1):
    """A little-endian TIFF of one strip, 12 bits packed."""
    if bits == 12:
        pairs = grey.reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        strip = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        strip = grey.astype("<u2").tobytes()
    height, width = grey.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(strip))]
    entries = b"".join(np.array([tag, 3, 1, 0, value, 0], "<u2").tobytes() for tag, value in tags)
    start = 8 + len(strip) + len(strip) % 2
    head = b"II*\0" + start.to_bytes(4, "little") + strip + bytes(len(strip) % 2)
    return head + len(tags).to_bytes(2, "little") + entries + bytes(4)


def test_twelve_bits_are_scaled_by_their_own_range():
    grey = levels(1, 1 << 12, (6, 8))
    np.testing.assert_array_equal(pixels(tiff(grey, 12))[:, :, 0], np.round(grey / 4095 * 255))


def test_white_may_be_zero():
    grey = levels(2, 1 << 16, (6, 8))
    np.testing.assert_array_equal(pixels(tiff(grey, 16, photometric=0))[:, :, 0], np.round((65535 - grey) / 257))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("top", [1, 255, 1 << 30])
def test_grey_without_a_known_white_is_refused(dtype, top):
    image = Image.fromarray((levels(0, 1000) / 1000 * top).astype(dtype))
    with pytest.raises(ValueError, match="no known black and white; write it with 8 or 16 bits"):
        decode(written(image, "tiff"))


def test_more_than_eight_bits_of_colour_keep_their_range():
    """Pillow writes no such PNG; this one is made by hand."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    colour = levels(3, 1 << 16, (5, 7, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(pixels(png) - colour / 257).max() <= 1


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), mode=st.sampled_from(["LA", "RGBA", "PA"]), kind=st.sampled_from(["png", "tiff"]))
def test_transparent_pixels_lie_on_white(seed, mode, kind):
    depth = 2 if mode == "LA" else 4
    values = levels(seed, 256, (5, 7, depth)).astype(np.uint8)
    if mode == "PA":
        image = Image.fromarray(values[:, :, :3]).quantize(256)
        seen = np.asarray(image.convert("RGB")).astype(float)
        opaque = (np.asarray(image) != 7)[:, :, None].astype(float)
        data = written(image, "png", transparency=7)
    else:
        data = written(Image.fromarray(values, mode), kind)
        opaque = values[:, :, -1:] / 255
        seen = values[:, :, :-1].astype(float)
    expected = seen * opaque + 255 * (1 - opaque)
    assert np.abs(pixels(data) - expected).max() <= 1


def test_a_grey_level_may_be_transparent():
    grey = levels(4, 1 << 16)
    grey[2] = 4000
    data = written(Image.fromarray(grey.astype(np.uint16)), transparency=4000)
    expected = np.where(grey == 4000, 255, np.round(grey / 257))
    np.testing.assert_array_equal(pixels(data)[:, :, 2], expected)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [*TURNED, 0, 9, 60000])
def test_images_are_turned_as_the_camera_was_held(kind, orientation):
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((40, 24), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = pixels(written(image, kind)).astype(int)
    found = pixels(written(image, kind, exif=exif)).astype(int)
    expected = TURNED.get(orientation, TURNED[1])(upright)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 1  # libtiff and JPEG may round otherwise


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0"]))
def test_damaged_exif_data_spoil_no_image(tail, head):
    image = Image.new("RGB", (6, 4), "red")
    assert pixels(written(image, "jpeg", exif=head + tail)).shape in ((4, 6, 3), (6, 4, 3))


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_of_many_frames_the_first_is_taken(kind):
    first, second = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    data = written(first, kind, save_all=True, append_images=[second])
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["eps", "pdf", "pcx", "tga", "ico", "jpeg2000", "sgi", "im", "msp", "dds"])
def test_other_formats_are_refused(kind):
    image = Image.new("1" if kind == "msp" else "RGB", (16, 16))
    with pytest.raises(UnidentifiedImageError):
        decode(written(image, kind))
    assert kind.upper() not in FORMATS


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L", "P", "RGBX"])
def test_other_colours_become_rgb(mode):
    image = Image.new("RGB", (6, 4), (204, 204, 204)).convert(mode)
    assert np.abs(pixels(written(image, "tiff")).astype(int) - 204).max() <= 2


def test_black_and_white_become_rgb():
    dots = levels(6, 2).astype(bool)
    np.testing.assert_array_equal(pixels(written(Image.fromarray(dots)))[:, :, 0], 255 * dots)


def test_lab_becomes_rgb():
    rgb = Image.fromarray(levels(7, 256, (5, 7, 3)).astype(np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert np.abs(pixels(written(lab, "tiff")).astype(int) - np.asarray(rgb)).mean() < 4


def test_an_image_of_too_many_pixels_is_not_decoded():
    data = written(Image.new("1", (1 << 14, (1 << 13) + 1)))
    with pytest.raises(SbsError, match=r"pixels are 134,234,112, .*at most 134,217,728; make the image smaller"):
        decode(data)
