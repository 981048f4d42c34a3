"""Pictures and texts that a person gives for the comparison: a folder of pictures, or shards with captions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from clipx.data.decode import UndecodableError, decode_image, open_image
from clipx.data.index.shard_list import expand_shards
from clipx.data.labelled import EncodedImage
from clipx.data.labelled.shards import read_pictures
from clipx.errors import InputError
from clipx.export.parity.samples import TEXTS, Samples
from clipx.printable import redact
from clipx.storage.files import is_local

MOST = 1000
"""Pictures that are compared; further ones are not read."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")


class _Pictures(Sequence[Image.Image]):
    """Pictures that are decoded as they are asked for: a thousand photographs take gigabytes."""

    def __init__(self, encoded: list[EncodedImage]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode_image(self._encoded[index].data)


def given_samples(place: str) -> Samples:
    """The first pictures of a folder, or those of shards with one caption of each.

    Args:
        place: a folder of pictures, in subfolders too; or shards as `data.train` takes them. Where there are no
            captions, the texts are clipx's own.

    Raises:
        InputError: there are no pictures, one cannot be read, or a shard is broken; the message names --pictures.
    """
    try:
        shards = [] if _is_picture_folder(place) else list(expand_shards([place]))
        encoded = list(_first(read_pictures(shards) if shards else _files(Path(place))))
        if not encoded:
            raise InputError(f"{place} holds no pictures; give a folder of them, or shards")
        sizes = [_size(picture) for picture, _ in encoded]
    except (InputError, OSError) as error:
        raise InputError(f"--pictures: {error}") from error
    texts = [caption for _, caption in encoded if caption]
    origin = f"{Path(redact(place)).name}, {'with its captions' if texts else 'and texts of clipx'}"
    return Samples(_Pictures([picture for picture, _ in encoded]), sizes, texts or list(TEXTS), origin)


def _first(pictures: Iterator[tuple[EncodedImage, str | None]]) -> Iterator[tuple[EncodedImage, str | None]]:
    for _, picture in zip(range(MOST), pictures, strict=False):
        yield picture


def _is_picture_folder(place: str) -> bool:
    if not is_local(place) or not os.path.isdir(place):
        return False
    return not any(name.endswith(".tar") for name in os.listdir(place))


def _files(folder: Path) -> Iterator[tuple[EncodedImage, None]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                path = Path(parent) / name
                yield EncodedImage(name=str(path), data=path.read_bytes()), None


def _size(picture: EncodedImage) -> tuple[int, int]:
    """Width and height; the picture is decoded once, so that a broken one is found before the export is written."""
    try:
        decode_image(picture.data)
        with open_image(picture.data) as image:
            return image.size
    except (UndecodableError, ValueError) as error:
        raise InputError(f"{picture.name}: {error}; leave it out") from error
