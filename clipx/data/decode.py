"""From bytes to pixels: libjpeg-turbo for ordinary JPEGs, Pillow for everything else.

libjpeg-turbo is called through simplejpeg if that is installed, else through torchvision. Both give Pillow's pixels bit
for bit (tested); simplejpeg is 5 to 10% faster, and leaves data that libjpeg warns about to Pillow, while torchvision
prints the warning. torchvision's PNG decoder takes 0.87 of Pillow's time, which is not worth a third path.

Any fault in the bytes is an `UndecodableError`; nothing here reads files, so no I/O error is among them. Only functions
that make tensors import torch: commands that read headers alone start without it.
Shapes: H x W pixels, C = 3 channels.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from clipx.data.eight_bits import is_deep, to_rgb
from clipx.data.picture_limits import CountedReads, excess, scans_too_often

if TYPE_CHECKING:
    from torch import Tensor

# Without a list Pillow tries every plugin, and some of them start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")

_PROGRESSIVE = 0xC2
_FRAME_MARKERS = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended and progressive frames (ITU-T T.81, table B.1)
_SCAN_MARKER = 0xDA
_MAX_SEGMENTS = 1000  # before the scan; Pillow decodes what has more


class UndecodableError(ValueError):
    """The sample's bytes are no image or hold no caption; the message is one line with the reason."""


class Decoded(NamedTuple):
    """What Pillow made of a picture."""

    image: Image.Image
    """RGB."""
    deep: bool
    """Whether grey values of more than 8 bits were scaled."""


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """An encoded image, of which Pillow has read the header; what goes wrong in the body is the picture's fault, too.

    Raises:
        UndecodableError: empty, truncated or corrupt data, a format not in `FORMATS`, more pixels than twice Pillow's
            `Image.MAX_IMAGE_PIXELS` (a decompression bomb), or a structure that would stall (`picture_limits`).
    """
    if not data:
        raise UndecodableError("picture of 0 bytes")
    try:
        if (reason := excess(data)) is not None:
            raise UndecodableError(f"picture of {len(data)} bytes: {reason}")
        with Image.open(CountedReads(data), formats=_available_formats()) as image:
            yield image
    except (MemoryError, UndecodableError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever malformed bytes led them to, not only OSError
        raise UndecodableError(f"picture of {len(data)} bytes: {one_line(error)}") from error


def decode_any(data: bytes) -> Decoded:
    """The image as RGB, decoded in full by Pillow.

    Transparency and EXIF orientation are ignored, and an animation gives its first frame, as in CLIP and open_clip.

    Raises:
        UndecodableError: the cases of `open_image`; grey values without a known range (`eight_bits`).
    """
    with open_image(data) as image:
        return Decoded(to_rgb(image), is_deep(image))


def decode_image(data: bytes) -> Image.Image:
    """The image of `decode_any`."""
    return decode_any(data).image


def to_tensor(image: Image.Image) -> "Tensor":
    """Pillow's pixels as uint8 (H, W, C), a copy."""
    import torch

    return torch.from_numpy(np.array(image))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) from the header of a JPEG that `decode_jpeg` may decode; None if Pillow must decode it, or refuse it.

    Those are other formats, CMYK, other than 8 bits, arithmetic coding, more than `Image.MAX_IMAGE_PIXELS` pixels, at
    which Pillow warns or refuses, too many scans, and what has no scan.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, frame, size, num_channels = 2, 0, (0, 0), 0
    for _ in range(_MAX_SEGMENTS):
        if at + 10 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _FRAME_MARKERS and not frame:
            frame = marker
            bits, height, width, num_channels = struct.unpack_from(">BHHB", data, at + 4)
            size = (height, width)
            small = Image.MAX_IMAGE_PIXELS is None or height * width <= Image.MAX_IMAGE_PIXELS
            if not (bits == 8 and num_channels in (1, 3) and height * width > 0 and small):
                return None
        if marker == _SCAN_MARKER:
            one_scan = frame != _PROGRESSIVE and data[at + 4] == num_channels
            return size if frame and (one_scan or not scans_too_often(data, at + 2, size[0] * size[1])) else None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def decode_jpeg(data: bytes, size: tuple[int, int], *, divisor: int = 1) -> "Tensor | None":
    """The pixels of a JPEG of `size` (H, W), from `jpeg_size`.

    With a divisor of 2, 4 or 8, which needs `can_scale()`, the decoder leaves out high frequencies of each block (DCT
    scaling) and gives ceil(H / divisor) x ceil(W / divisor) pixels.

    Returns:
        uint8 (H, W, C), C innermost in memory; None for truncated or corrupt data, some of which Pillow accepts.
    """
    import torch

    height, width = (-(-side // divisor) for side in size)
    turbo = _simplejpeg()
    try:
        if turbo is not None:
            # of the library's scales (eighths) the smallest that is not below the minimum: exactly 1 / divisor
            pixels_HWC = torch.from_numpy(turbo.decode_jpeg(data, min_height=height, min_width=width))
        else:
            assert divisor == 1
            pixels_HWC = _torchvision_jpeg(data)
    except MemoryError:
        raise
    except Exception:  # simplejpeg raises ValueError, torchvision RuntimeError, and Pillow says what is wrong
        return None
    return pixels_HWC if pixels_HWC.shape == (height, width, 3) else None


def can_scale() -> bool:
    """Whether `decode_jpeg` can scale, which needs simplejpeg."""
    return _simplejpeg() is not None


def _torchvision_jpeg(data: bytes) -> "Tensor":
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy: torch warns of bytes, which are read-only
    return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0)


@cache
def _simplejpeg() -> Any:
    try:
        return import_module("simplejpeg")
    except ImportError:
        return None


def _available_formats() -> list[str]:
    """The `FORMATS` that this Pillow was built with; it raises a KeyError for others."""
    if not Image.OPEN.keys() >= set(FORMATS):
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def one_line(error: Exception) -> str:
    """The error as one line for the list of bad samples, the same text for the same bytes."""
    message = re.sub(r" <[\w.]+ object at 0x\w+>", "", str(error))
    return " ".join(f"{type(error).__name__}: {message}".split())
