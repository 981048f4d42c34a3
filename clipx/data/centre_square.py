"""The evaluation crop of very long images, without the pixels that it cuts off.

Resizing a 1 x 20,000 image to a short side of 224 pixels makes a billion pixels, of whose rows 224 are kept. Here only
those rows (or columns) are computed, by Pillow's own arithmetic, so that the result is equal to the bit (tested).
Shapes: S image size; N pixels and K of them for each of the S results along the long side; M pixels across.
"""

import numpy as np
from PIL import Image

_BITS = 22  # of the fixed-point weights with which Pillow's resampling of 8-bit channels computes


def long_side(width: int, height: int, size: int) -> int:
    """Pixels of the longer side when the shorter one is resized to `size`; torchvision cuts the fraction off."""
    return int(size * max(width, height) / min(width, height))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """What Pillow's bicubic resize to a short side of S pixels and torchvision's centre crop give, as RGB.

    Pillow resizes rows first, then columns, and rounds in between; the other way round if the height shrinks by more
    than twice what the width does (Pillow 13; found by trying).
    """
    width, height = image.size
    tall = height > width
    length = long_side(width, height, size)
    new_width, new_height = (size, length) if tall else (length, size)
    columns_first = height > new_height and height - new_height > 2 * (width - new_width)
    indices_SK, weights_SK = _weights(max(width, height), length, first=round((length - size) / 2), size=size)
    low, high = int(indices_SK.min()), int(indices_SK.max()) + 1
    part = image.convert("RGB").crop((0, low, width, high) if tall else (low, 0, high, height))
    if tall == columns_first:
        return _across(_along(part, indices_SK - low, weights_SK, tall=tall), size, tall=tall)
    return _along(_across(part, size, tall=tall), indices_SK - low, weights_SK, tall=tall)


def _across(image: Image.Image, size: int, *, tall: bool) -> Image.Image:
    """The short side resized to S."""
    return image.resize((size, image.height) if tall else (image.width, size), Image.Resampling.BICUBIC)


def _along(image: Image.Image, indices_SK: np.ndarray, weights_SK: np.ndarray, *, tall: bool) -> Image.Image:
    """The wanted S pixels of the long side."""
    pixels_NMC = np.asarray(image) if tall else np.asarray(image).swapaxes(0, 1)
    sums_SMC = np.zeros((len(indices_SK), *pixels_NMC.shape[1:]), np.int64)
    for indices_S, weights_S in zip(indices_SK.T, weights_SK.T, strict=True):
        sums_SMC += pixels_NMC[indices_S] * weights_S[:, None, None]
    result_SMC = np.clip((sums_SMC + (1 << (_BITS - 1))) >> _BITS, 0, 255).astype(np.uint8)
    return Image.fromarray(result_SMC if tall else result_SMC.swapaxes(0, 1).copy())


def _weights(num_pixels: int, length: int, *, first: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For results `first` to `first` + S - 1 of `length`: the pixels that each needs and their weights, int64 (S, K).

    A cubic with a = -0.5 (Keys 1981, equation 4), stretched when the image shrinks. Pixels outside the image count 0.
    """
    scale = num_pixels / length
    stretch = max(scale, 1.0)
    center_S = (first + np.arange(size) + 0.5) * scale
    low_S = np.maximum((center_S - 2 * stretch + 0.5).astype(np.int64), 0)
    high_S = np.minimum((center_S + 2 * stretch + 0.5).astype(np.int64), num_pixels)
    indices_SK = low_S[:, None] + np.arange((high_S - low_S).max())
    x_SK = np.abs((indices_SK - center_S[:, None] + 0.5) * (1 / stretch))
    near_SK = (1.5 * x_SK - 2.5) * x_SK * x_SK + 1
    far_SK = (((x_SK - 5) * x_SK + 8) * x_SK - 4) * -0.5
    weight_SK = np.where(x_SK < 1, near_SK, np.where(x_SK < 2, far_SK, 0.0))
    weight_SK[indices_SK >= high_S[:, None]] = 0
    weight_SK /= np.cumsum(weight_SK, axis=1)[:, -1:]  # one after the other, as Pillow adds them
    fixed_SK = np.trunc(weight_SK * (1 << _BITS) + np.where(weight_SK < 0, -0.5, 0.5)).astype(np.int64)
    return np.minimum(indices_SK, num_pixels - 1), fixed_SK
