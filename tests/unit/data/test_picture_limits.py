"""Bytes that would keep a decoder busy are bad samples; ordinary pictures stay far from the bounds."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features
from tiny_clip import encoded, picture

from clipx.data import picture_limits
from clipx.data.decode import UndecodableError, decode_image, decode_jpeg, jpeg_size
from clipx.data.picture_limits import MAX_SCANS, CountedReads, excess


def jpeg(size=(32, 32), **options):
    buffer = io.BytesIO()
    picture(0, size).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def with_scans(count):
    """A progressive JPEG whose last scan comes again and again, `count` scans in all."""
    data = jpeg(progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * (count - data.count(b"\xff\xda")) + data[end:]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks):
    """A good PNG with further chunks after its header."""
    data = encoded(picture(1))
    return data[:33] + b"".join(chunks) + data[33:]


def gif_with(extension):
    data = encoded(picture(2), "gif")
    start = data.index(b"!") if b"!" in data else data.index(b",")
    return data[:start] + extension + data[start:]


def tiff_with_tag(count, *, big=False):
    kind = "<HHQQ" if big else "<HHII"
    head = b"II" + (struct.pack("<HHHQQ", 43, 8, 0, 16, 1) if big else struct.pack("<HIH", 42, 8, 1))
    return head + struct.pack(kind, 273, 4, count, 50) + bytes(8)


FEW_READS = 3000
STRUCTURES = {
    "plain pixmap": b"P3\n2 1\n255\n0 0 0 1 1 1\n",
    "plain greymap of comments": b"P2 " + b"# nothing\n" * 50,
    "plain bitmap": b"P1\n2 1\n0 1\n",
    "comments before the size": b"P6 " + b"#" * 5000 + b"\n2 1 255\n" + bytes(6),
    "run-length encoding": b"BM" + bytes(12) + struct.pack("<IIIHHI", 40, 9, 9, 1, 8, 1) + bytes(900),
    "scans": with_scans(MAX_SCANS + 1),
    "scans of a baseline JPEG": jpeg().replace(b"\xff\xd9", b"") + jpeg()[jpeg().index(b"\xff\xda") :] * 200,
    "segments": b"\xff\xd8" + b"\xff\xe1\0\x02" * 20_000 + jpeg()[2:],
    "fill bytes": b"\xff\xd8" + b"\xff" * 5000 + jpeg()[2:],
    "chunks": png_with(*[chunk(b"teSt", b"")] * 2000),
    "comment blocks": gif_with(b"!\xfe" + b"\x01a" * 2000 + b"\0"),
    "extensions": gif_with(b"!\xf9\x04\0\0\0\0\0" * 2000),
    "a tag of numbers": tiff_with_tag(1 << 20),
    "a tag of numbers, BigTIFF": tiff_with_tag(1 << 40, big=True),
    "tags": b"II" + struct.pack("<HIH", 42, 8, 5000) + struct.pack("<HHII", 300, 1, 4, 0) * 5000 + bytes(4),
    "a profile that unpacks to much": png_with(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 22)))),
    "texts that unpack to much": png_with(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 70),
    "pixels": encoded(Image.new("1", (1, 1))).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 1, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 1, 0, 0, 0, 0)),
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_stall_a_decoder_are_undecodable(name, monkeypatch):
    monkeypatch.setattr(picture_limits, "MAX_READS", FEW_READS)
    with pytest.raises(UndecodableError, match=f"picture of {len(STRUCTURES[name])} bytes: ") as raised:
        decode_image(STRUCTURES[name])
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["scans", "segments", "fill bytes", "scans of a baseline JPEG"])
def test_the_fast_path_leaves_them_to_pillow(name):
    assert jpeg_size(STRUCTURES[name]) is None or decode_jpeg(STRUCTURES[name], (32, 32)) is None


def test_an_ordinary_number_of_scans_is_decoded():
    for data in (jpeg(progressive=True), with_scans(MAX_SCANS)):
        assert jpeg_size(data) == (32, 32)
        assert decode_image(data).size == (32, 32)


def test_scans_of_large_pictures_are_fewer(monkeypatch):
    data = with_scans(20)
    monkeypatch.setattr(picture_limits, "MAX_SCANNED_PIXELS", 20 * 32 * 32)
    assert (excess(data), jpeg_size(data)) == (None, (32, 32))
    monkeypatch.setattr(picture_limits, "MAX_SCANNED_PIXELS", 20 * 32 * 32 - 1)
    assert "scans" in excess(data)
    assert jpeg_size(data) is None


def test_what_only_looks_like_a_scan_is_none():
    """In a segment, and behind the end of the picture, where phones store a film."""
    like_scans = b"\xff\xda" * 200
    data = jpeg(progressive=True)
    middle = data.rindex(b"\xff\xda")
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(like_scans)) + like_scans
    for odd in (data[:2] + segment + data[2:], data[:middle] + segment + data[middle:], data + like_scans):
        assert excess(odd) is None
        assert jpeg_size(odd) == (32, 32)
        assert np.array_equal(np.array(decode_image(odd)), np.array(decode_image(data)))
    hidden = with_scans(300)
    first = hidden.index(b"\xff\xda", middle)
    assert "scans" in excess(hidden[:first] + b"\xff\xfe\0\x04\xff\xd9" + hidden[first:])
    assert "scans" in excess(hidden[:first] + b"\xff\x01" + hidden[first:])


@pytest.mark.parametrize("format", ["png", "gif", "webp", "tiff"])
def test_of_a_thousand_frames_the_first_is_decoded(format, monkeypatch):
    frames = [Image.new("L", (3, 2), 10 + i % 200) for i in range(1000)]
    buffer = io.BytesIO()
    frames[0].convert("RGB").save(
        buffer, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "webp" else {})
    )
    monkeypatch.setattr(picture_limits, "MAX_READS", 20_000)
    assert np.array_equal(np.array(decode_image(buffer.getvalue())), np.array(frames[0].convert("RGB")))


def test_directories_of_tiff_that_never_end_are_not_followed():
    data = bytearray(encoded(picture(4), "tiff"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert np.array_equal(np.array(decode_image(bytes(data))), np.array(picture(4)))


FORMATS = ["jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm"] + (["avif"] if features.check("avif") else [])


@pytest.mark.parametrize("format", FORMATS)
def test_ordinary_pictures_are_read_in_a_hundred_parts(format, monkeypatch):
    files = []

    class Recorded(CountedReads):
        def __init__(self, data):
            super().__init__(data)
            files.append(self)

    monkeypatch.setattr("clipx.data.decode.CountedReads", Recorded)
    data = encoded(picture(5, (500, 400)), format)
    assert excess(data) is None
    assert decode_image(data).size == (500, 400)
    assert picture_limits.MAX_READS - files[0]._left < 200 + len(data) // 4000
