"""Whether a consumer cuts the same centre square out of a picture as the model's own preprocessing.

Both bring the short side to S; if what the long side has more than S is odd, half a pixel is left over. torchvision,
and so clipx and open_clip, round the corner to the nearest even pixel; transformers rounds it down. They are one pixel
apart where the rest is 4n + 3.
"""

from collections.abc import Sequence
from typing import Literal

from clipx.config.model import ModelConfig

Crop = Literal["round", "floor"]


def same_crop(sizes: Sequence[tuple[int, int]], config: ModelConfig, *, crop: Crop) -> list[bool]:
    """Of each picture, by its width and height, whether both corners are the same."""
    ours: str = getattr(config.image, "crop", "round")
    if ours == crop or getattr(config.image, "resize", "shortest") == "squash":
        return [True] * len(sizes)
    size = config.image.image_size
    return [_rest(width, height, size) % 4 != 3 for width, height in sizes]


def _rest(width: int, height: int, size: int) -> int:
    """How many pixels the long side has more than `size`, once the short one has `size`."""
    short, long = sorted((width, height))
    return int(size * long / short) - size
