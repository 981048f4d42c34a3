"""torchvision's colour and RandAugment operations on many images at once, each with its own strength.

All take uint8 images (N, H, W, C) and float32 strengths (N, 1, 1, 1), and return uint8 (N, H, W, C). Sums over an image
are integers, and no kernel multiplies and adds in one step: an image's result depends neither on the other images nor
on its place in memory. torchvision's result differs by at most 1 of 255 in 3% of the values, because its float32 rounds
differently before the fraction is cut off (tested); it is equal for posterize, solarize, autocontrast, equalize and the
warps.

Shapes: N images, H x W pixels, C = 3 channels, M maps, P = H * W positions.
"""

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
"""RandAugment's geometric operations, in its order."""


def brightness(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """Black at factor 0, unchanged at 1."""
    return _to_uint8(images_NHWC * factor_N)


def contrast(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """The mean grey at factor 0, unchanged at 1."""
    grey_NHW1 = _grey(images_NHWC)
    total_N = grey_NHW1.sum(dim=(1, 2, 3), keepdim=True)
    return _blend(images_NHWC, total_N / grey_NHW1[0].numel(), factor_N)


def saturation(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """Grey at factor 0, unchanged at 1."""
    return _blend(images_NHWC, _grey(images_NHWC), factor_N)


def hue(images_NHWC: Tensor, turns_N: Tensor) -> Tensor:
    """Hues turned by -0.5 to 0.5 of the circle.

    A hue of h sixths gives red, green and blue as v - c * clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6 and
    n = 5, 3, 1, of value v and chroma c (Smith, "Color gamut transform pairs", SIGGRAPH 1978, without its cases).
    """
    red, green, blue = (images_NHWC / 255).unbind(-1)
    least, value = torch.aminmax(torch.stack((red, green, blue), -1), dim=-1)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    turned = sixths + turns_N.squeeze(-1) * 6
    channels = []
    for n in (5, 3, 1):
        k = (turned + n).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return (torch.stack(channels, -1) * 255.999).to(torch.uint8)  # as torchvision's to_dtype cuts


def grayscale(images_NHWC: Tensor, _: Tensor) -> Tensor:
    """All channels the grey value."""
    return _grey(images_NHWC).to(torch.uint8).expand_as(images_NHWC)


def sharpness(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """Blurred (3 x 3, the middle counting 5, the others 1) at factor 0, unchanged at 1; so is the border of a pixel."""
    height, width = images_NHWC.shape[1:3]
    wide = images_NHWC.to(torch.int32)
    inner = wide[:, 1:-1, 1:-1]
    total = 4 * inner
    for top in range(3):
        for left in range(3):
            total = total + wide[:, top : height - 2 + top, left : width - 2 + left]
    sharpened = images_NHWC.clone()
    sharpened[:, 1:-1, 1:-1] = _blend(inner, (total / 13).round(), factor_N)
    return sharpened


def posterize(images_NHWC: Tensor, mask_N: Tensor) -> Tensor:
    """Only the bits of the mask are kept."""
    return images_NHWC & mask_N.to(torch.uint8)


def solarize(images_NHWC: Tensor, threshold_N: Tensor) -> Tensor:
    """Values from the threshold on are inverted."""
    return torch.where(images_NHWC >= threshold_N, ~images_NHWC, images_NHWC)


def autocontrast(images_NHWC: Tensor, _: Tensor) -> Tensor:
    """Every channel stretched to 0 to 255."""
    return tv.autocontrast(images_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def equalize(images_NHWC: Tensor, _: Tensor) -> Tensor:
    """Every channel's values spread evenly."""
    return tv.equalize(images_NHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def warp(images_NHWC: Tensor, number_N: Tensor, maps_MP: Tensor) -> Tensor:
    """Every pixel from the position that map `number_N` of `warp_maps` gives for it; black if that is outside."""
    pixels_NPC = torch.nn.functional.pad(images_NHWC.flatten(1, 2), (0, 0, 1, 0))  # position 0 is black
    source_NP = maps_MP[number_N.flatten().long()]
    return pixels_NPC.gather(1, source_NP[..., None].expand(-1, -1, images_NHWC.shape[-1])).view_as(images_NHWC)


def warp_maps(height: int, width: int, step: int) -> Tensor:
    """The positions from which `WARPS` take their pixels, with positive, then negative strength: int64 (10, H * W).

    torchvision warps an image of positions, which count from 1 row by row; 0 is outside. So equal maps are equal
    operations. H and W are at most 4096, as positions are float32; `step` is 0 to 30.
    """
    positions = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    shear = math.degrees(math.atan(strength(0.0, 0.3, step)))
    shift_x, shift_y = (int(strength(0.0, 150.0 / 331.0 * side, step)) for side in (width, height))
    maps = []
    for sign in (1, -1):
        maps += [
            _affine(positions, shear=(sign * shear, 0.0), center=[0.0, 0.0]),
            _affine(positions, shear=(0.0, sign * shear), center=[0.0, 0.0]),
            _affine(positions, translate=(sign * shift_x, 0)),
            _affine(positions, translate=(0, sign * shift_y)),
            tv.rotate(positions, sign * strength(0.0, 30.0, step)),
        ]
    return torch.stack(maps).flatten(1).long()


def strength(first: float, last: float, step: int) -> float:
    """RandAugment's magnitude at one of 31 steps, rounded as in torchvision."""
    return float(torch.linspace(first, last, 31)[step])


def _affine(
    positions: Tensor,
    *,
    shear: tuple[float, float] = (0.0, 0.0),
    translate: tuple[int, int] = (0, 0),
    center: list[float] | None = None,
) -> Tensor:
    return tv.affine(positions, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=center)


def _grey(images_NHWC: Tensor) -> Tensor:
    """ITU-R BT.601 luma, floored, int32 (N, H, W, 1)."""
    red, green, blue = images_NHWC.to(torch.int32).split(1, dim=-1)
    return (2989 * red + 5870 * green + 1140 * blue) // 10000


def _blend(images: Tensor, others: Tensor, share_N: Tensor) -> Tensor:
    return _to_uint8(images + (others - images) * (1 - share_N))  # exact where both are equal


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
