"""Encoded images to uint8 squares: the training crop and flip, and the evaluation preprocessing; owns torchvision.

Both stop at uint8, a quarter of float32's bytes on the way to the device, where the image tower normalises. Colours and
RandAugment are computed there too (`device_augment.py`).
Shapes: S image size, H x W pixels of the decoded image, C = 3 channels.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from clipx import counter_random
from clipx.config.data import AugmentConfig
from clipx.data.centre_square import centre_square, long_side
from clipx.data.decode import can_scale, decode_any, decode_jpeg, jpeg_size, to_tensor
from clipx.data.eight_bits import to_rgb
from clipx.errors import InputError

_MAX_RESIZED = 1 << 24  # pixels of an image that is resized whole; at 224 it is 334 times as long as wide
_TRIES = 10  # of torchvision's RandomResizedCrop
_KEYS = np.arange(3 + 2 * _TRIES, dtype=np.int64)
_resize = torch.ops.aten._upsample_bicubic2d_aa.out  # interpolate calls it; here it writes into existing memory


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class Decoding(NamedTuple):
    """How an image was decoded."""

    by_pillow: bool
    """Pillow had to decode an image that the fast path cannot."""
    deep: bool
    """Grey values of more than 8 bits were scaled to 8."""


class TrainTransform:
    """Decodes, then random resized crop and flip: a pure function of the bytes and the seed.

    The crop has the distribution of torchvision's RandomResizedCrop; a seed gives the same box for every `decode`. Mean
    differences to Pillow, of 255, on images like photographs of 256 to 1500 pixels (benchmarks/LOG.md): "fast" 0.002 to
    0.004, two roundings; "scaled" 0.5 to 0.7 (0.7 to 1.1 on harder ones), in the box that it was snapped to.

    Args:
        image_size: S, pixels of the square result.

    Raises:
        InputError: "scaled" without simplejpeg.
    """

    def __init__(
        self, image_size: int, augment: AugmentConfig, *, decode: Literal["fast", "scaled", "pil"] = "fast"
    ) -> None:
        if decode == "scaled" and not can_scale():
            raise InputError(
                "data.decode=scaled needs the package simplejpeg: pip install simplejpeg, or set data.decode=fast"
            )
        self._size = image_size
        self._augment = augment
        self._decode = decode

    def __call__(self, data: bytes, *, seed: int, out: Tensor) -> Decoding:
        """Writes the augmented image into `out`: uint8 (S, S, 3), contiguous, perhaps a row of a batch; seed < 2^63.

        Raises:
            UndecodableError: no image that Pillow can read; `out` is unchanged.
        """
        assert out.shape == (self._size, self._size, 3)
        numbers = counter_random.uniform(counter_random.fold(np.array([seed], dtype=np.int64), _KEYS)).tolist()
        by_pillow = deep = False
        if self._decode == "pil":
            image, deep = decode_any(data)
            self._crop_on_pillow(image, numbers, out)
        elif not self._crop_fast(data, numbers, out):
            image, deep = decode_any(data)
            pixels_HWC = to_tensor(image)
            _crop(pixels_HWC, self._box(pixels_HWC.shape[:2], numbers), out)
            by_pillow = True
        if numbers[0] < self._augment.flip:
            out.copy_(out.flip(1))
        return Decoding(by_pillow, deep)

    def _crop_fast(self, data: bytes, numbers: Sequence[float], out: Tensor) -> bool:
        """Returns whether it is a JPEG that could be decoded without Pillow; if so, `out` holds its crop."""
        size = jpeg_size(data)
        if size is None:
            return False
        box = self._box(size, numbers)
        divisor = largest_divisor(box, self._size) if self._decode == "scaled" else 1
        pixels_HWC = decode_jpeg(data, size, divisor=divisor)
        if pixels_HWC is None:
            return False
        _crop(pixels_HWC, snapped(box, divisor), out)
        return True

    def _crop_on_pillow(self, image: Image.Image, numbers: Sequence[float], out: Tensor) -> None:
        box = self._box((image.height, image.width), numbers)
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        out.copy_(to_tensor(cut.resize((self._size, self._size), Image.Resampling.BICUBIC)))

    def _box(self, size: Sequence[int], numbers: Sequence[float]) -> Box:
        height, width = size
        return random_box(height, width, numbers[1:], scale=self._augment.crop_scale, ratio=self._augment.crop_ratio)


class EvalTransform:
    """Short side to S, bicubic, then the centre square: OpenAI's and open_clip's preprocessing, on Pillow.

    transformers' CLIPImageProcessor (backend "pil") gives the same pixels with one exception: if the resized image is
    4n + 3 pixels longer than S, torchvision rounds half of the margin up and transformers down, one pixel apart.
    """

    def __init__(self, image_size: int) -> None:
        self._size = image_size
        self._transform = v2.Compose(
            [
                v2.Resize(image_size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(image_size),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """The preprocessed image, uint8 (S, S, 3); `image` of any mode is converted to RGB.

        Raises:
            ValueError: grey values of more than 8 bits without a known range (`eight_bits`).
        """
        image = to_rgb(image)
        if self._size * long_side(*image.size, self._size) > _MAX_RESIZED:
            return to_tensor(centre_square(image, self._size))
        return to_tensor(self._transform(image))


def random_box(
    height: int, width: int, numbers: Sequence[float], *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box with the distribution of torchvision's RandomResizedCrop.get_params.

    Ten tries draw a share of the area from `scale`, uniformly, and width over height from `ratio`, uniformly in the
    logarithm; the first box that fits into the image is taken, or else the largest centre box within `ratio`.

    `numbers` are 22, uniform in [0, 1): distance from the top and the left, then area and ratio of each try.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(2, 2 + 2 * _TRIES, 2):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[i])
        aspect = math.exp(log_low + (log_high - log_low) * numbers[i + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(numbers[0] * (height - h + 1)), int(numbers[1] * (width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(w / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(h * ratio[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def largest_divisor(box: Box, image_size: int) -> int:
    """The largest of 8, 4, 2 and 1 by which a box can be reduced without being smaller than the result."""
    smaller = min(box.height, box.width) // image_size
    return next((divisor for divisor in (8, 4, 2) if divisor <= smaller), 1)


def snapped(box: Box, divisor: int) -> Box:
    """The box in pixels of the image decoded `divisor` times smaller, each edge rounded to the nearest pixel.

    The crop that was drawn moves by at most half a pixel of the smaller image; a box with fractional edges would have
    to be moved later anyway. Its sides are at least floor(side / divisor).
    """
    top, left, bottom, right = (
        (edge + divisor // 2) // divisor for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return Box(top, left, bottom - top, right - left)


def _crop(pixels_HWC: Tensor, box: Box, out_SSC: Tensor) -> None:
    """Writes the box, resized, bicubic and antialiased like Pillow's.

    It works on uint8 in channels-last order: a copy to channels-first would cost three times the resize.
    """
    size = out_SSC.shape[0]
    crop_BCHW = pixels_HWC[None, box.top : box.top + box.height, box.left : box.left + box.width].permute(0, 3, 1, 2)
    # Rounding between the passes makes their order visible (0.2 of 255). torch resizes rows first; Pillow 13 (found by
    # trying; older ones never) begins with the columns of images so much taller than wide, which is also less work.
    if box.height > size and box.height - size > 2 * (box.width - size):
        crop_BCHW = interpolate(crop_BCHW, (size, box.width), mode="bicubic", antialias=True)
    _resize(crop_BCHW, [size, size], False, out=out_SSC[None].permute(0, 3, 1, 2))
