"""Encoded images to uint8 squares: the training crop and flip, and the evaluation preprocessing.

Both stop at uint8, a quarter of float32's bytes on the way to the device, where the image tower normalises. Colours and
RandAugment are computed there too (`device_augment.py`).
Shapes: S image size, H x W pixels of the decoded image, C = 3 channels.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from clipx import counter_random
from clipx.config.data import AugmentConfig
from clipx.config.model import Crop, Interpolation, Resize
from clipx.data.centre_square import PILLOW_FILTERS, centre_square, long_side
from clipx.data.decode import Decoded, can_scale, decode_any, decode_jpeg, jpeg_size, to_tensor
from clipx.data.eight_bits import to_rgb
from clipx.data.resizing import Box, resize_box, resize_whole
from clipx.errors import InputError

_MAX_RESIZED = 1 << 24  # pixels of an image that is resized whole; at 224 it is 334 times as long as wide
_TRIES = 10  # of torchvision's RandomResizedCrop
_KEYS = np.arange(3 + 2 * _TRIES, dtype=np.int64)


class Decoding(NamedTuple):
    """How an image was decoded."""

    by_pillow: bool
    """Pillow had to decode an image that the fast path cannot."""
    deep: bool
    """Grey values of more than 8 bits were scaled to 8."""


class EncodedPicture:
    """A picture's bytes, and what was decoded of them so far."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._jpegs: dict[int, Tensor | None] = {}

    @cached_property
    def jpeg_size(self) -> tuple[int, int] | None:
        """See `clipx.data.decode.jpeg_size`."""
        return jpeg_size(self._data)

    def jpeg(self, divisor: int) -> Tensor | None:
        """See `clipx.data.decode.decode_jpeg`."""
        if divisor not in self._jpegs:
            assert self.jpeg_size is not None
            self._jpegs[divisor] = decode_jpeg(self._data, self.jpeg_size, divisor=divisor)
        return self._jpegs[divisor]

    @cached_property
    def by_pillow(self) -> Decoded:
        """See `clipx.data.decode.decode_any`, which may raise."""
        return decode_any(self._data)

    @cached_property
    def pixels_of_pillow(self) -> Tensor:
        """Its pixels, uint8 (H, W, C)."""
        return to_tensor(self.by_pillow.image)


class TrainTransform:
    """Decodes, then random resized crop and flip: a pure function of the bytes and the seed.

    The crop has the distribution of torchvision's RandomResizedCrop; a seed gives the same box for every `decode`. Mean
    differences to Pillow, of 255, on images like photographs of 256 to 1500 pixels (benchmarks/LOG.md): "fast" 0.002 to
    0.004, two roundings; "scaled" 0.5 to 0.7 (0.7 to 1.1 on harder ones), in the box that it was snapped to. Those are
    bicubic's; bilinear, "fast" stays below 0.06.

    Args:
        image_size: S, pixels of the square result.
        augment: shares of area, ratios of the sides, flip.
        decode: how much of the work Pillow does.
        interpolation: of the crop that is resized.

    Raises:
        InputError: "scaled" without simplejpeg.
    """

    def __init__(
        self,
        image_size: int,
        augment: AugmentConfig,
        *,
        decode: Literal["fast", "scaled", "pil"] = "fast",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        if decode == "scaled" and not can_scale():
            raise InputError(
                "data.decode=scaled needs the package simplejpeg: pip install simplejpeg, or set data.decode=fast"
            )
        self._size = image_size
        self._augment = augment
        self._decode = decode
        self._interpolation: Interpolation = interpolation

    def __call__(self, data: bytes, *, seed: int, out: Tensor) -> Decoding:
        """Writes the augmented image into `out`: uint8 (S, S, 3), contiguous, perhaps a row of a batch; seed < 2^63.

        Raises:
            UndecodableError: no image that Pillow can read; `out` is unchanged.
        """
        return self.view(EncodedPicture(data), seed=seed, out=out)

    def view(self, picture: EncodedPicture, *, seed: int, out: Tensor) -> Decoding:
        """What `__call__` does, of a picture that is decoded once for several seeds, sizes or interpolations."""
        assert out.shape == (self._size, self._size, 3)
        numbers = counter_random.uniform(counter_random.fold(np.array([seed], dtype=np.int64), _KEYS)).tolist()
        by_pillow = deep = False
        if self._decode == "pil":
            image, deep = picture.by_pillow
            self._crop_on_pillow(image, numbers, out)
        elif not self._crop_fast(picture, numbers, out):
            deep = picture.by_pillow.deep
            pixels_HWC = picture.pixels_of_pillow
            resize_box(pixels_HWC, self._box(pixels_HWC.shape[:2], numbers), out, interpolation=self._interpolation)
            by_pillow = True
        if numbers[0] < self._augment.flip:
            out.copy_(out.flip(1))
        return Decoding(by_pillow, deep)

    def _crop_fast(self, picture: EncodedPicture, numbers: Sequence[float], out: Tensor) -> bool:
        """Returns whether it is a JPEG that could be decoded without Pillow; if so, `out` holds its crop."""
        if picture.jpeg_size is None:
            return False
        box = self._box(picture.jpeg_size, numbers)
        divisor = largest_divisor(box, self._size) if self._decode == "scaled" else 1
        pixels_HWC = picture.jpeg(divisor)
        if pixels_HWC is None:
            return False
        resize_box(pixels_HWC, snapped(box, divisor), out, interpolation=self._interpolation)
        return True

    def _crop_on_pillow(self, image: Image.Image, numbers: Sequence[float], out: Tensor) -> None:
        box = self._box((image.height, image.width), numbers)
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        out.copy_(to_tensor(cut.resize((self._size, self._size), PILLOW_FILTERS[self._interpolation])))

    def _box(self, size: Sequence[int], numbers: Sequence[float]) -> Box:
        height, width = size
        return random_box(height, width, numbers[1:], scale=self._augment.crop_scale, ratio=self._augment.crop_ratio)


class EvalTransform:
    """The evaluation preprocessing of OpenAI, open_clip and transformers, on Pillow: equal to theirs to the pixel.

    "shortest" resizes the short side to S and cuts out the centre square, "squash" resizes both sides to S. open_clip
    and transformers' processors of backend "pil" give the same pixels, with one exception: if the resized image is
    4n + 3 pixels longer than S, open_clip's crop begins at the pixel after half of the margin ("round") and
    transformers' at the one before ("floor"). In pictures with transparency they differ: transformers puts white behind
    them, here and in open_clip it is ignored.

    Args:
        image_size: S, pixels of the square result.
        resize: what becomes of the longer side.
        interpolation: of Pillow, with antialiasing.
        crop: where the centre square begins if it could begin at either of two pixels.
    """

    def __init__(
        self,
        image_size: int,
        *,
        resize: Resize = "shortest",
        interpolation: Interpolation = "bicubic",
        crop: Crop = "round",
    ) -> None:
        self._size = image_size
        self._resize: Resize = resize
        self._interpolation: Interpolation = interpolation
        self._crop: Crop = crop

    def __call__(self, image: Image.Image) -> Tensor:
        """The preprocessed image, uint8 (S, S, 3); `image` of any mode is converted to RGB.

        Raises:
            ValueError: grey values of more than 8 bits without a known range (`eight_bits`).
        """
        image, size, resample = to_rgb(image), self._size, PILLOW_FILTERS[self._interpolation]
        if self._resize == "squash":
            return to_tensor(image.resize((size, size), resample))
        length, first = self._long_side(image.width, image.height)
        if size * length > _MAX_RESIZED:
            return to_tensor(centre_square(image, size, first=first, interpolation=self._interpolation))
        if image.height > image.width:
            return to_tensor(image.resize((size, length), resample).crop((0, first, size, first + size)))
        return to_tensor(image.resize((length, size), resample).crop((first, 0, first + size, size)))

    def decoded(self, data: bytes, *, decode: Literal["pil", "fast"] = "pil") -> Tensor:
        """The preprocessed image of encoded bytes, uint8 (S, S, 3).

        Args:
            data: an encoded image.
            decode: "pil" gives what `__call__` gives, "fast" nearly that: libjpeg-turbo decodes JPEGs (Pillow other
                formats), and torch resizes to the same size and cuts out the same square. Rounded weights make pixels
                differ by at most 3 of 255 (bicubic 0.03 on average, bilinear 0.1); a small model's embeddings of 5,229
                photographs had a cosine with those of Pillow's pixels of at least 0.999997 (benchmarks/LOG.md).

        Raises:
            UndecodableError: no image that Pillow can read.
        """
        return self.read(data, decode=decode)[0]

    def read(self, data: bytes, *, decode: Literal["pil", "fast"]) -> tuple[Tensor, Decoding]:
        """What `decoded` gives, and how it came about."""
        size = jpeg_size(data) if decode == "fast" else None
        pixels_HWC = None if size is None else decode_jpeg(data, size)
        if pixels_HWC is not None:
            return self._resized(pixels_HWC), Decoding(by_pillow=False, deep=False)
        image, deep = decode_any(data)
        if decode == "pil":
            return self(image), Decoding(by_pillow=False, deep=deep)
        return self._resized(to_tensor(image)), Decoding(by_pillow=True, deep=deep)

    def _resized(self, pixels_HWC: Tensor) -> Tensor:
        """What `__call__` makes of RGB pixels, by torch."""
        (height, width), size = pixels_HWC.shape[:2], self._size
        if self._resize == "squash":
            return resize_whole(pixels_HWC, size, size, interpolation=self._interpolation)
        length, first = self._long_side(width, height)
        if size * length > _MAX_RESIZED:
            return self(Image.fromarray(pixels_HWC.numpy()))
        # Whole, as edges of a square that is cut out before would lie between pixels, which torch cannot say.
        if height > width:
            return resize_whole(pixels_HWC, length, size, interpolation=self._interpolation)[first : first + size]
        whole_HWC = resize_whole(pixels_HWC, size, length, interpolation=self._interpolation)
        return whole_HWC[:, first : first + size].contiguous()

    def _long_side(self, width: int, height: int) -> tuple[int, int]:
        """The longer side when the shorter one has S pixels, and where on it the centre square begins."""
        length = long_side(width, height, self._size)
        margin = length - self._size
        return length, round(margin / 2) if self._crop == "round" else margin // 2  # 1.5 becomes 2 or 1


class FixedTransform:
    """The evaluation preprocessing in the place of `TrainTransform`: it draws nothing.

    Args:
        image_size: S, pixels of the square result.
        decode: as for training; "scaled" is "fast" here.
        resize, interpolation, crop: see `EvalTransform`.
    """

    def __init__(
        self,
        image_size: int,
        *,
        decode: Literal["fast", "scaled", "pil"] = "fast",
        resize: Resize = "shortest",
        interpolation: Interpolation = "bicubic",
        crop: Crop = "round",
    ) -> None:
        self._transform = EvalTransform(image_size, resize=resize, interpolation=interpolation, crop=crop)
        self._decode: Literal["pil", "fast"] = "pil" if decode == "pil" else "fast"

    def __call__(self, data: bytes, *, seed: int, out: Tensor) -> Decoding:
        """Writes the image into `out`: uint8 (S, S, 3).

        Raises:
            UndecodableError: no image that Pillow can read; `out` is unchanged.
        """
        pixels_SSC, decoding = self._transform.read(data, decode=self._decode)
        out.copy_(pixels_SSC)
        return decoding


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
