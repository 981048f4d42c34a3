"""Pictures as people have them at hand, in batches of pixels.

Shapes: B pictures, S image size.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from clipx.data.decode import UndecodableError
from clipx.errors import InputError
from clipx.storage.failures import unreadable
from clipx.storage.files import read_file

Picture: TypeAlias = Image.Image | str | os.PathLike[str] | bytes
"""A picture of Pillow, the path or address of a file, or a file's bytes."""
Pictures: TypeAlias = Picture | Iterable[Picture] | Tensor
"""One picture, several, or uint8 (B, S, S, 3)."""
_AT_ONCE = 64


def pixel_batches(
    pictures: Pictures, *, of_image: Callable[[Image.Image], Tensor], of_bytes: Callable[[bytes], Tensor]
) -> Iterator[Tensor]:
    """Yields uint8 (B, S, S, 3), in the order of the pictures; an iterator is read as far as it is needed.

    Args:
        pictures: any that `Pictures` names.
        of_image: makes pixels, uint8 (S, S, 3), of a picture of Pillow.
        of_bytes: makes them of an encoded picture.

    Raises:
        InputError: there is no picture, one is none, or a file cannot be read.
    """
    if isinstance(pictures, Tensor):
        yield from pictures.split(_AT_ONCE) if pictures.ndim else [pictures]  # the model says what is wrong with it
        return
    several = isinstance(pictures, Iterable) and not isinstance(pictures, str | bytes | os.PathLike | Image.Image)
    remaining: Iterator[object] = iter(pictures if several else [pictures])  # type: ignore[arg-type]
    found = False
    while batch := list(islice(remaining, _AT_ONCE)):
        found = True
        yield torch.stack([_pixels(picture, of_image, of_bytes) for picture in batch])
    if not found:
        raise InputError("no picture; give at least one")


def _pixels(picture: object, of_image: Callable[[Image.Image], Tensor], of_bytes: Callable[[bytes], Tensor]) -> Tensor:
    if isinstance(picture, Image.Image):
        return of_image(picture)
    if isinstance(picture, bytes):
        name, content = "a picture's bytes", picture
    elif isinstance(picture, str | os.PathLike):
        name = os.fspath(picture)
        try:
            content = read_file(name)
        except OSError as error:
            raise unreadable(name, error) from error
    else:
        kind = type(picture).__name__
        raise InputError(f"a picture must be a PIL.Image, a path, an address or bytes, not {kind}")
    try:
        return of_bytes(content)
    except UndecodableError as error:
        raise InputError(f"{name}: {error}; give a picture") from error
