"""Resizing of decoded pixels by torch, antialiased like Pillow's, on uint8 in channels-last order.

A copy to channels-first would cost three times the resize. Like Pillow, torch resizes along one side, rounds to uint8,
and resizes along the other; the rounding makes the order visible (0.2 of 255), so the order here is Pillow's.
Shapes: S image size, H x W pixels of the decoded image, C = 3 channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from clipx.config.model import Interpolation

# interpolate calls them; here they write into existing memory
_RESIZE = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa.out, "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out}


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def resize_box(pixels_HWC: Tensor, box: Box, out_SSC: Tensor, *, interpolation: Interpolation) -> None:
    """Writes the box, cut out and then resized to a square."""
    size = out_SSC.shape[0]
    crop_BCHW = pixels_HWC[None, box.top : box.top + box.height, box.left : box.left + box.width].permute(0, 3, 1, 2)
    if columns_first(box.height, box.width, new_height=size, new_width=size):
        crop_BCHW = interpolate(crop_BCHW, (size, box.width), mode=interpolation, antialias=True)
    _RESIZE[interpolation](crop_BCHW, [size, size], False, out=out_SSC[None].permute(0, 3, 1, 2))


def resize_whole(pixels_HWC: Tensor, height: int, width: int, *, interpolation: Interpolation) -> Tensor:
    """The picture with `height` x `width` pixels: uint8 (height, width, C)."""
    if columns_first(*pixels_HWC.shape[:2], new_height=height, new_width=width):
        pixels_HWC = _resize(pixels_HWC, height, pixels_HWC.shape[1], interpolation=interpolation)
    return _resize(pixels_HWC, height, width, interpolation=interpolation)


def columns_first(height: int, width: int, *, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 resizes along the height first (found by trying; older ones never do).

    It does if the height shrinks by more than twice what the width does, which is also less work.
    """
    return height > new_height and height - new_height > 2 * (width - new_width)


def _resize(pixels_HWC: Tensor, height: int, width: int, *, interpolation: Interpolation) -> Tensor:
    """Resizes rows first."""
    out_HWC = torch.empty((height, width, 3), dtype=torch.uint8)
    _RESIZE[interpolation](
        pixels_HWC[None].permute(0, 3, 1, 2), [height, width], False, out=out_HWC[None].permute(0, 3, 1, 2)
    )
    return out_HWC
