"""The evaluation crop of very long images, without the pixels that it cuts off.

Resizing a 1 x 20,000 image to a short side of 224 pixels makes a billion pixels, of whose rows 224 are kept. Here only
those rows (or columns) are computed, by Pillow's own arithmetic, so that the result is equal to the bit (tested).
Shapes: S image size; N pixels and K of them for each of the S results along the long side; M pixels across.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from clipx.config.model import Interpolation

PILLOW_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Pillow's name of each interpolation; all of them are antialiased."""
_BITS = 22  # of the fixed-point weights with which Pillow's resampling of 8-bit channels computes


def long_side(width: int, height: int, size: int) -> int:
    """Pixels of the longer side when the shorter one is resized to `size`; torchvision cuts the fraction off."""
    return int(size * max(width, height) / min(width, height))


def centre_square(image: Image.Image, size: int, *, first: int, interpolation: Interpolation) -> Image.Image:
    """The square that begins at pixel `first` of the long side after Pillow's resize to a short side of S, as RGB.

    Pillow resizes rows first, then columns, and rounds in between; the other way round if the height shrinks by more
    than twice what the width does (Pillow 13; found by trying).
    """
    width, height = image.size
    tall = height > width
    length = long_side(width, height, size)
    new_width, new_height = (size, length) if tall else (length, size)
    columns_first = height > new_height and height - new_height > 2 * (width - new_width)
    indices_SK, weights_SK = _weights(
        max(width, height), length, first=first, size=size, kernel=_KERNELS[interpolation]
    )
    low, high = int(indices_SK.min()), int(indices_SK.max()) + 1
    part = image.convert("RGB").crop((0, low, width, high) if tall else (low, 0, high, height))
    across = (size, part.height) if tall else (part.width, size)
    if tall == columns_first:
        along = _along(part, indices_SK - low, weights_SK, tall=tall)
        return along.resize((size, size), PILLOW_FILTERS[interpolation])
    return _along(part.resize(across, PILLOW_FILTERS[interpolation]), indices_SK - low, weights_SK, tall=tall)


def _along(image: Image.Image, indices_SK: np.ndarray, weights_SK: np.ndarray, *, tall: bool) -> Image.Image:
    """The wanted S pixels of the long side."""
    pixels_NMC = np.asarray(image) if tall else np.asarray(image).swapaxes(0, 1)
    sums_SMC = np.zeros((len(indices_SK), *pixels_NMC.shape[1:]), np.int64)
    for indices_S, weights_S in zip(indices_SK.T, weights_SK.T, strict=True):
        sums_SMC += pixels_NMC[indices_S] * weights_S[:, None, None]
    result_SMC = np.clip((sums_SMC + (1 << (_BITS - 1))) >> _BITS, 0, 255).astype(np.uint8)
    return Image.fromarray(result_SMC if tall else result_SMC.swapaxes(0, 1).copy())


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981, equation 4, with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0.0)


_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bicubic": (_cubic, 2),
    "bilinear": (_triangle, 1),
}
"""Weight of a pixel by its distance from the result, and the distance from which on it is 0."""


def _weights(
    num_pixels: int, length: int, *, first: int, size: int, kernel: tuple[Callable[[np.ndarray], np.ndarray], int]
) -> tuple[np.ndarray, np.ndarray]:
    """For results `first` to `first` + S - 1 of `length`: the pixels that each needs and their weights, int64 (S, K).

    The kernel is stretched when the image shrinks. Pixels outside the image count 0.
    """
    weigh, support = kernel
    scale = num_pixels / length
    stretch = max(scale, 1.0)
    center_S = (first + np.arange(size) + 0.5) * scale
    low_S = np.maximum((center_S - support * stretch + 0.5).astype(np.int64), 0)
    high_S = np.minimum((center_S + support * stretch + 0.5).astype(np.int64), num_pixels)
    indices_SK = low_S[:, None] + np.arange((high_S - low_S).max())
    weight_SK = weigh(np.abs((indices_SK - center_S[:, None] + 0.5) * (1 / stretch)))
    weight_SK[indices_SK >= high_S[:, None]] = 0
    weight_SK /= np.cumsum(weight_SK, axis=1)[:, -1:]  # one after the other, as Pillow adds them
    fixed_SK = np.trunc(weight_SK * (1 << _BITS) + np.where(weight_SK < 0, -0.5, 0.5)).astype(np.int64)
    return np.minimum(indices_SK, num_pixels - 1), fixed_SK
