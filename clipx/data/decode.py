"""From bytes to pixels: libjpeg-turbo for ordinary JPEGs, Pillow for everything else.

libjpeg-turbo is called through simplejpeg if that is installed, else through torchvision. Both give Pillow's pixels bit
for bit (tested); simplejpeg is 5 to 10% faster, and leaves data that libjpeg warns about to Pillow, while torchvision
prints the warning. torchvision's PNG decoder takes 0.87 of Pillow's time, which is not worth a third path.

Any fault in the bytes is an `UndecodableError`; nothing here reads files, so no I/O error is among them. Only functions
that make tensors import torch: commands that read headers alone start without it.
Shapes: H x W pixels, C = 3 channels.
"""

import io
import re
import struct
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# Without a list Pillow tries every plugin, and some of them start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO")

_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive frames (ITU-T T.81, table B.1)


class UndecodableError(ValueError):
    """The sample's bytes are no image or hold no caption; the message is one line with the reason."""


def decode_image(data: bytes) -> Image.Image:
    """The image as RGB, decoded in full by Pillow.

    Transparency and EXIF orientation are ignored, and an animation gives its first frame, as in CLIP and open_clip.

    Raises:
        UndecodableError: empty, truncated or corrupt data, a format not in `FORMATS`, or more pixels than twice
            Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    if not data:
        raise UndecodableError("picture of 0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=_available_formats()) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever malformed bytes led them to, not only OSError
        raise UndecodableError(f"picture of {len(data)} bytes: {one_line(error)}") from error


def to_tensor(image: Image.Image) -> "Tensor":
    """Pillow's pixels as uint8 (H, W, C), a copy."""
    import torch

    return torch.from_numpy(np.array(image))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) from the header of a JPEG that `decode_jpeg` may decode; None if Pillow must decode it.

    Pillow decodes other formats, CMYK, other than 8 bits, arithmetic coding, and more than `Image.MAX_IMAGE_PIXELS`
    pixels, at which it warns or refuses.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAME_MARKERS:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            small = Image.MAX_IMAGE_PIXELS is None or height * width <= Image.MAX_IMAGE_PIXELS
            return (height, width) if bits == 8 and channels in (1, 3) and height * width > 0 and small else None
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
    message = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", str(error))
    return " ".join(f"{type(error).__name__}: {message}".split())
