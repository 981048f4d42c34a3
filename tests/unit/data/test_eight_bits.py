"""What is more than 8 bits keeps its range; what is not stays as Pillow reads it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_clip import encoded, picture

from clipx.data.decode import UndecodableError, decode_any, decode_image
from clipx.data.eight_bits import is_deep, to_rgb

RAMP = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(8, 32)
EIGHT = (RAMP >> 8).astype(np.uint8)


def tiff(values, *, sample_format=1, bits=None, white_is_zero=False, order="<"):
    """A file by TIFF 6.0, of one strip; Pillow does not write all of these."""
    height, width = values.shape
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes() if bits is None else values.tobytes()
    bits = bits or 8 * values.dtype.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 0), (277, 1)]
    tags += [(278, height), (279, len(strip)), (339, sample_format)]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, offset if tag == 273 else value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + strip


def png16(colour, channels):
    """A PNG of 16 bits a channel, (H, W, C); Pillow writes grey ones alone."""
    height, width = channels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(data):
    return np.array(decode_image(data))


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


DEEP = {
    "png": encoded(Image.fromarray(RAMP)),
    "tiff": encoded(Image.fromarray(RAMP), "tiff"),
    "tiff, big-endian": tiff(RAMP, order=">"),
    "pgm": encoded(Image.fromarray(RAMP), "ppm"),
    "tiff, signed": tiff((RAMP >> 1).astype(np.int16), sample_format=2),
    "tiff, signed, big-endian": tiff((RAMP >> 1).astype(np.int16), sample_format=2, order=">"),
    "16 bits in 32": encoded(Image.fromarray(RAMP.astype(np.int32)), "tiff"),
    "8 bits in 32": encoded(Image.fromarray(EIGHT.astype(np.int32)), "tiff"),
    "32 bits": tiff(RAMP.astype(np.uint32) << 16),
    "32 bits, signed": tiff(RAMP.astype(np.int32) << 15, sample_format=2),
    "32 bits, signed, big-endian": tiff((RAMP.astype(np.int32) << 15), sample_format=2, order=">"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_values_keep_their_range(name):
    image, deep = decode_any(DEEP[name])
    assert deep
    assert image.mode == "RGB"
    assert np.array_equal(np.array(image), grey(EIGHT))


@pytest.mark.parametrize("white", [1, 255, 65_535])
@pytest.mark.parametrize("format", ["tiff", "ppm"])
def test_floats_are_taken_for_shares_bytes_or_sixteen_bits(white, format):
    values = np.linspace(0, white, 256, dtype=np.float32).reshape(8, 32)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), format)), grey(np.arange(256).reshape(8, 32)))


def test_white_may_be_zero():
    assert np.array_equal(pixels(tiff(RAMP, white_is_zero=True)), grey(255 - EIGHT))
    shares = (RAMP / 65_535).astype(np.float32)
    expected = pixels(tiff(1 - shares, sample_format=3))
    assert np.abs(pixels(tiff(shares, sample_format=3, white_is_zero=True)).astype(int) - expected).max() <= 1


def test_twelve_bits_are_twelve_bits():
    values = np.arange(4096).reshape(32, 128)
    pairs = values.reshape(32, -1, 2)  # two values in three bytes
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    data = tiff(packed.astype(np.uint8).reshape(32, -1), bits=12).replace(
        struct.pack("<I", 192), struct.pack("<I", 128), 1
    )
    assert np.array_equal(pixels(data), grey((values >> 4).astype(np.uint8)))


UNKNOWN = {
    "negative": tiff(RAMP.astype(np.int32) - 5, sample_format=2),
    "signed, negative": tiff(RAMP.astype(np.int16), sample_format=2),
    "between 16 and 32 bits": tiff(RAMP.astype(np.int32) * 16, sample_format=2),
    "float, negative": tiff(RAMP.astype(np.float32) - 0.5, sample_format=3),
    "float, large": tiff(RAMP.astype(np.float32) * 1.5, sample_format=3),
    "not a number": tiff(np.where(RAMP == 0, np.nan, RAMP).astype(np.float32), sample_format=3),
    "infinite": tiff(np.where(RAMP == 0, np.inf, RAMP).astype(np.float32), sample_format=3),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_without_a_known_range_are_undecodable_and_not_black_or_white(name):
    with pytest.raises(UndecodableError, match="what is black and white"):
        decode_image(UNKNOWN[name])


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_and_transparency_take_the_high_byte_too(colour, channels):
    draw = np.random.default_rng(colour)
    values = draw.integers(0, 1 << 16, size=(5, 7, channels), dtype=np.uint16)
    high = (values >> 8).astype(np.uint8)
    expected = high[..., :3] if channels >= 3 else grey(high[..., 0])
    assert np.array_equal(pixels(png16(colour, values)), expected)


def test_a_picture_that_is_no_file_is_scaled_too():
    assert np.array_equal(np.array(to_rgb(Image.fromarray(RAMP))), grey(EIGHT))
    assert np.array_equal(np.array(to_rgb(Image.fromarray(RAMP.astype(np.int32)))), grey(EIGHT))
    assert [is_deep(picture(0).convert(mode)) for mode in ("1", "L", "P", "LA", "RGBA", "CMYK")] == [False] * 6


def test_inverted_cmyk_and_palettes_with_transparency_keep_their_colours():
    flat = Image.new("RGB", (16, 16), (200, 60, 20))
    buffer = io.BytesIO()
    flat.convert("CMYK").save(buffer, "jpeg", quality=95)  # with Adobe's marker, inverted as Photoshop does
    assert b"Adobe" in buffer.getvalue()
    assert np.abs(pixels(buffer.getvalue()).astype(int) - np.array(flat)).max() <= 3
    palette = picture(3).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "png", transparency=bytes(range(0, 256, 16)))
    assert np.array_equal(pixels(buffer.getvalue()), np.array(palette.convert("RGB")))
