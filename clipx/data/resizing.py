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


def resize_then_cut(
    pixels_HWC: Tensor, out_SSC: Tensor, *, length: int, first: int, interpolation: Interpolation
) -> None:
    """Writes the square that begins at pixel `first` of the long side, of the whole picture resized to `length` x S.

    Cut out before, its edges would lie between pixels, where torch has no name for them. So the whole is resized, but
    for what nobody looks at: the second pass of a picture whose first pass has made the long side, and the rows of the
    first pass that the second does not reach.

    Args:
        pixels_HWC: uint8 (H, W, C), C innermost in memory.
        out_SSC: uint8 (S, S, C), contiguous.
        length: pixels of the long side when the short one has S.
        first: between 0 and `length` - S.
        interpolation: the kernel, which is stretched where the picture shrinks.
    """
    (height, width), size = pixels_HWC.shape[:2], out_SSC.shape[0]
    if height <= width:
        resized_HLC = _resized(pixels_HWC, height, length, interpolation=interpolation)
        _resize(resized_HLC[:, first : first + size], out_SSC, interpolation=interpolation)
    elif columns_first(height, width, new_height=length, new_width=size):
        resized_LWC = _resized(pixels_HWC, length, width, interpolation=interpolation)
        _resize(resized_LWC[first : first + size], out_SSC, interpolation=interpolation)
    else:
        reach = 3 * max(1, -(-height // length))  # above the widest kernel, bicubic's: 2 on either side
        low = max(first * height // length - reach, 0)
        high = min((first + size) * height // length + reach + 1, height)
        narrow_HSC = torch.empty((height, size, 3), dtype=torch.uint8)
        _resize(pixels_HWC[low:high], narrow_HSC[low:high], interpolation=interpolation)
        out_SSC.copy_(_resized(narrow_HSC, length, size, interpolation=interpolation)[first : first + size])


def columns_first(height: int, width: int, *, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 resizes along the height first (found by trying; older ones never do).

    It does if the height shrinks by more than twice what the width does, which is also less work.
    """
    return height > new_height and height - new_height > 2 * (width - new_width)


def _resized(pixels_HWC: Tensor, height: int, width: int, *, interpolation: Interpolation) -> Tensor:
    out_HWC = torch.empty((height, width, 3), dtype=torch.uint8)
    _resize(pixels_HWC, out_HWC, interpolation=interpolation)
    return out_HWC


def _resize(pixels_HWC: Tensor, out_HWC: Tensor, *, interpolation: Interpolation) -> None:
    """Resizes rows first."""
    new_size = list(out_HWC.shape[:2])
    _RESIZE[interpolation](pixels_HWC[None].permute(0, 3, 1, 2), new_size, False, out=out_HWC[None].permute(0, 3, 1, 2))
