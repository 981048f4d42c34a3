"""Reads samples as training does and tells the good from the bad, for `clipx data check` and `clipx data stats`."""

from collections.abc import Mapping
from typing import Literal, Protocol

from clipx.config.data import Source
from clipx.config.fit import FitConfig
from clipx.data.captions import CaptionReader, first_present
from clipx.data.columns import RawSample
from clipx.data.decode import UndecodableError
from clipx.data.fit_columns import FitColumns, JoinedText, picture_members
from clipx.data.sample_refs import SampleName, SampleRef
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
    "unreadable record",
]


class UnusableSampleError(Exception):
    """A sample that training would not take."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail


class MemberReader(Protocol):
    """Finds text and picture among the members of a sample."""

    def read(self, fields: Mapping[str, bytes], *, sample_id: int) -> tuple[str, bytes | None]:
        """The text and the encoded image; None: it may be absent, and is.

        Raises:
            UnusableSampleError: training would not take the sample.
        """


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


class FitSampleReader:
    """Reads samples as a fit run does: any input may be absent, but not all, and every cell must be readable."""

    def __init__(self, config: FitConfig) -> None:
        self._texts = JoinedText(config.text_columns)
        self._columns = FitColumns(config, training=False)
        self._pictures = picture_members(config)

    def read(self, fields: Mapping[str, bytes], *, sample_id: int) -> tuple[str, bytes | None]:
        """The joined text and the encoded image, None if there is none or it is no input.

        Raises:
            UnusableSampleError: a cell cannot be read, or none of the inputs is there.
        """
        name = SampleName("", "", tuple(fields))
        ref = SampleRef(source=0, shard=0, index=sample_id, epoch=0, sample_id=sample_id)
        try:
            text = self._texts.read(fields, epoch=0, sample_id=sample_id).texts[0]
            self._columns.read(RawSample(members=fields, texts=(text,), ref=ref, name=lambda: name))
        except UndecodableError as error:
            raise UnusableSampleError("unreadable record", str(error)) from error
        return text, next((content for kind, content in fields.items() if kind in self._pictures), None)
