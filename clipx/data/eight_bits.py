"""Pictures of any number of bits to 8 bits a channel; Pillow alone would cut grey values at 255.

What Pillow reads as colour has 8 bits already: of 16-bit channels it takes the high byte, as is done for grey here.
"""

from typing import Any

import numpy as np
from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def is_deep(image: Image.Image) -> bool:
    """Whether it has grey values of more than 8 bits, which `to_rgb` scales."""
    return image.mode[0] in "IF"


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, transparency ignored; deep grey values are scaled to 8 bits.

    White is the largest value of the format. Floats and 32-bit integers have none that people keep to: for them it is
    the smallest of 1 (floats alone), 255 and 65,535 that no value exceeds, or what fills 32 bits.

    Raises:
        ValueError: values below 0, above or far below all of these, or NaN: nobody can say what is black or white.
    """
    return (_eight_bits(image) if is_deep(image) else image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags and _first(tags.get(_SAMPLE_FORMAT, _UNSIGNED)) == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow's 32 bits are signed
    least, most = values.min(), values.max()
    white = _white(image, tags, most=most, dtype=values.dtype)
    if white is None or not 0 <= least <= most <= white:  # false for NaN, too
        raise ValueError(f"grey values from {least} to {most}: nobody can say what is black and white")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    if values.dtype.kind == "f":
        return Image.fromarray((values * (255 / white) + 0.5).astype(np.uint8))
    return Image.fromarray((values >> (white.bit_length() - 8)).astype(np.uint8))


def _white(image: Image.Image, tags: Any, *, most: Any, dtype: np.dtype[Any]) -> int | None:
    """The value of white, None if no range fits the brightest value."""
    if image.mode == "F":
        return next((white for white in (1, 255, 65_535) if most <= white), None)
    if image.mode != "I":
        return int((1 << _first(tags.get(_BITS_PER_SAMPLE, 16))) - 1)  # TIFF has 12 bits, too
    if image.format in ("PNG", "PPM"):
        return 65_535
    if _first(tags.get(_BITS_PER_SAMPLE, 32)) == 16:
        return 32_767  # Pillow gives signed 16 bits as I
    fills = int(np.iinfo(dtype).max)
    return next((white for white in (255, 65_535) if most <= white), fills if most > fills // 2 else None)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)
