"""Reads samples as training does and tells the good from the bad, for `clipx data check` and `clipx data stats`."""

from collections.abc import Mapping
from typing import Literal

from clipx.config.data import Source
from clipx.data.captions import CaptionReader, first_present
from clipx.data.decode import UndecodableError
from clipx.errors import some_names

Fault = Literal[
    "unreadable shard",
    "damaged shard",
    "split samples",
    "links",
    "many members",
    "no samples",
    "cut sample",
    "large sample",
    "no caption",
    "no picture",
    "unreadable picture",
]


class UnusableSampleError(Exception):
    """A sample that training would not take."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail


class StoredSampleReader:
    """Reads samples of a source as the loader does."""

    def __init__(self, source: Source) -> None:
        self._image_key = source.image_key
        self._captions = CaptionReader(source, captions_per_image=1, seed=0)

    def read(self, fields: Mapping[str, bytes], *, sample_id: int) -> tuple[str, bytes]:
        """The caption and the encoded image of a sample's members; `sample_id` decides which of several captions.

        Raises:
            UnusableSampleError: the caption cannot be read, or there is no image.
        """
        try:
            caption = self._captions.read(fields, epoch=0, sample_id=sample_id).texts[0]
        except UndecodableError as error:
            raise UnusableSampleError("no caption", str(error)) from error
        image = first_present(fields, self._image_key)
        if image is None:
            members = some_names(sorted(fields))
            raise UnusableSampleError("no picture", f"nothing under {self._image_key!r}; members: {members}")
        return caption, image
