"""What a picture may ask of its decoder: bounds that ordinary pictures are far from, for bytes that would stall a run.

Pillow parses headers in Python, byte by byte or block by block, and has three decoders in Python; libjpeg goes through
all pixels of a progressive JPEG once for each scan. A few kilobytes can keep them busy for minutes. The bounds look at
bytes alone, so that a sample is good or bad on every machine. The number of pixels is bounded by Pillow, and the bytes
that text chunks of PNG or tags of TIFF unpack to are as well.
"""

import io
import re
import struct

MAX_SCANS = 100
"""Of a JPEG; libjpeg's own script for progressive colour pictures has ten."""
MAX_SCANNED_PIXELS = 1 << 31
"""Scans times pixels of a JPEG."""
MAX_READS = 1 << 20
"""How often a decoder may ask for bytes: once for each chunk, tag, block of 64 KiB, or badly parsed byte."""
_MAX_SEGMENTS = 10_000  # of a JPEG
_MAX_TAGS = 1000  # of TIFF
_MAX_NUMBERS = 1 << 18  # of a tag of TIFF, e.g. offsets of strips: one per row
# What follows FF in compressed data is 00 or a restart marker; 01 stands alone, too (ITU-T T.81, B.1.1).
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN = re.compile(rb"\xff\xda")  # faster than bytes.count
_PACKED_TIFF_TYPES = (1, 2, 6, 7)  # bytes, of which profiles and thumbnails are made
_RLE = (1, 2)  # compressions of BMP


class CountedReads(io.BytesIO):
    """Bytes as a file that gives up after `MAX_READS` reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes.

        Raises:
            ValueError: it was asked too often.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {MAX_READS:,} parts, which nobody needs")
        return super().read(size)


def excess(data: bytes) -> str | None:
    """Why a decoder would be busy for too long with an encoded picture, as far as its structure tells; or None."""
    if data[:2] == b"\xff\xd8":
        return _excess_of_jpeg(data)
    if data[:2] in (b"P1", b"P2", b"P3"):
        return "numbers written out as text (PPM, plain)"
    if data[:2] == b"BM" and len(data) >= 34 and struct.unpack_from("<I", data, 30)[0] in _RLE:
        return "a BMP with run-length encoding"
    if data[:2] in (b"II", b"MM") and (b"*" in data[2:4] or b"+" in data[2:4]):
        return _excess_of_tiff(data)
    return None


def scans_too_often(data: bytes, at: int, pixels: int) -> bool:
    """Whether a JPEG whose first scan begins at byte `at` goes through its pixels too often."""
    at_most = 1 + len(_SCAN.findall(data, at))  # most pictures need no look at single segments
    if at_most <= MAX_SCANS and at_most * pixels <= MAX_SCANNED_PIXELS:
        return False
    scans = 1
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or data[marker.start() + 1] == 0xD9 or marker.end() + 2 > len(data):
            return False
        scans += data[marker.start() + 1] == 0xDA
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
            return True
        at = marker.end() + struct.unpack_from(">H", data, marker.end())[0]
    return True


def _excess_of_jpeg(data: bytes) -> str | None:
    at, pixels = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker.end() + 7 > len(data):
            return None
        kind, at = data[marker.start() + 1], marker.end()
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame (ITU-T T.81, table B.1)
            height, width = struct.unpack_from(">HH", data, at + 3)
            pixels = max(pixels, height * width)
        at += struct.unpack_from(">H", data, at)[0]
        if kind == 0xDA:
            return f"more than {MAX_SCANS} scans" if scans_too_often(data, at, pixels) else None
    return f"more than {_MAX_SEGMENTS:,} segments"


def _excess_of_tiff(data: bytes) -> str | None:
    """Looks at the first directory, the only one that is read."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+"  # Pillow takes no other byte for BigTIFF's
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
        if count > _MAX_TAGS:
            return f"{count:,} tags"
        first += 8 if big else 2
        entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
        entries = data[first : first + count * entry.size]
        entries = entries[: len(entries) // entry.size * entry.size]
        largest = max((n for _, kind, n in entry.iter_unpack(entries) if kind not in _PACKED_TIFF_TYPES), default=0)
    except (struct.error, OverflowError):  # too short
        return None
    return f"a tag of {largest:,} numbers" if largest > _MAX_NUMBERS else None
