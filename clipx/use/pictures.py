"""The pictures of rows, read again from where the inputs were when they were embedded."""

import io
import os
from functools import cached_property
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from clipx.data.decode import UndecodableError
from clipx.data.recorded_inputs import at_folder, reopen
from clipx.errors import ClipxError, InputError
from clipx.use.embeddings import Embeddings

if TYPE_CHECKING:
    from PIL import Image

    from clipx.data.inputs import Inputs

_QUALITY = 85
_AT_ONCE = 4
"""Pictures that are decoded at once: a large one may take some 500 MB."""


class Pictures:
    """Thumbnails of rows, for people to look at; from any thread."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        self._turn = BoundedSemaphore(_AT_ONCE)

    @cached_property
    def problem(self) -> str:
        """Why no picture can be read, in one line; empty if the inputs are there."""
        try:
            _ = self._inputs
        except ClipxError as error:
            return str(error)
        return ""

    def thumbnail(self, row: int, *, size: int = 192) -> "Image.Image | None":
        """A row's picture, `size` pixels at most on its longer side.

        None: the row has none, its file is not there any more or is another, or cannot be read.
        """
        from clipx.data.rows.row import LeftOutError

        key = self._embeddings.keys([row])[0]
        if self.problem or not key.has_image or key.row >= len(self._inputs):
            return None
        try:
            with self._turn:
                item = self._inputs.read(key.row)
                return thumbnail(item.image, size) if item.image and self._is_same(item.name, key.name) else None
        except (LeftOutError, UndecodableError, ClipxError, OSError):
            return None

    def jpeg(self, row: int, *, size: int = 256) -> bytes | None:
        """The same as the bytes of a JPEG file, made anew: nothing of the original but its pixels."""
        image = self.thumbnail(row, size=size)
        if image is None:
            return None
        data = io.BytesIO()
        image.save(data, "JPEG", quality=_QUALITY)
        return data.getvalue()

    @cached_property
    def _inputs(self) -> "Inputs":
        if (source := self._embeddings.manifest.source) is None:
            raise InputError(f"{self._embeddings.folder} does not say where its pictures are; embed again")
        return reopen(source)

    def _is_same(self, now: str, then: str) -> bool:
        """Whether an item is the one that was embedded under this number: files may have come or gone."""
        source = self._embeddings.manifest.source or {}
        return now == then or os.path.normpath(now) == at_folder(source, then)


def thumbnail(data: bytes, size: int) -> "Image.Image":
    """An encoded picture, small, upright, in RGB.

    Raises:
        UndecodableError: it is no picture.
    """
    from PIL import ImageOps

    from clipx.data.decode import open_image
    from clipx.data.eight_bits import to_rgb

    with open_image(data) as image:
        image.draft("RGB", (2 * size, 2 * size))  # a JPEG need not be decoded whole
        small = to_rgb(ImageOps.exif_transpose(image))
        small.thumbnail((size, size))
    return small
