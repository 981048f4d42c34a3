"""In which order the installed Pillow resizes."""

from PIL import Image
from tiny_clip import picture


def pillow_may_begin_with_columns() -> bool:
    """Whether this Pillow resizes a tall picture's columns before its rows, as Pillow 13 does."""
    tall = picture(0, (20, 60))
    columns_first = tall.resize((20, 15), Image.Resampling.BICUBIC).resize((15, 15), Image.Resampling.BICUBIC)
    return tall.resize((15, 15), Image.Resampling.BICUBIC) == columns_first
