"""What a condition looks at in a sample: captions, the picture's header, json fields, the row of a parquet file."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from clipx.data.captions import MAX_TEXT, alternatives, decode_captions
from clipx.data.decode import UndecodableError, open_image
from clipx.data.filters.conditions import CAPTION_FIELDS, IMAGE_FIELDS, Value
from clipx.errors import InputError, some_names
from clipx.storage.failures import hint
from clipx.storage.files import RangeReader, read_file
from clipx.storage.remote import ASK
from clipx.storage.tar import MAX_SAMPLE_BYTES, Member, fits_memory

NO_CAPTION, NO_IMAGE = "no caption", "no readable picture"
_HEADER_BYTES = 8192  # of an image; if they do not hold its size (long EXIF data, WebP) all of it is read


def absent_reason(field: str) -> str:
    """Why a sample that lacks a field is left out."""
    if field in CAPTION_FIELDS:
        return NO_CAPTION
    return NO_IMAGE if field in IMAGE_FIELDS else f"no {field}"


@dataclass
class FilterSample:
    """One sample; only what is asked for is read."""

    file: RangeReader
    members: Mapping[str, Member]
    """By extension."""
    caption_key: str
    image_key: str
    row: Mapping[str, Any]
    """From the parquet file beside the shard."""

    def values(self, field: str) -> Sequence[Value]:
        """The values that a condition on `field` tests, empty if the sample lacks it."""
        match field.partition(":"):
            case "json", ":", name:
                return _scalar(self.record.get(name))
            case "parquet", ":", name:
                return _scalar(self.row.get(name))
            case "caption.words", _, _:
                return [len(caption.split()) for caption in self.captions]
            case "caption.characters", _, _:
                return [len(caption.strip()) for caption in self.captions]
            case name, _, _:
                return () if self.size is None else (_measure(name, *self.size),)

    @cached_property
    def captions(self) -> list[str]:
        """All captions; empty if one is broken."""
        wanted = {extension for extension, _ in alternatives(self.caption_key)} & self.members.keys()
        try:
            return decode_captions({extension: self._read(extension) for extension in wanted}, self.caption_key)
        except UndecodableError:
            return []

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, as the image's header says."""
        if (extension := self._image_extension) is None:
            return None
        _, offset, length = self.members[extension]
        length = min(length, MAX_SAMPLE_BYTES)
        for num_bytes in sorted({min(_HEADER_BYTES, length), length}):
            size = _image_size(self.file.read_at(offset, num_bytes))
            if size is not None:
                return size
        return None

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The object in the json member, empty if there is none."""
        try:
            small = "json" in self.members and self.members["json"].size <= MAX_TEXT
            record = json.loads(self._read("json")) if small else {}
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def image(self) -> bytes:
        """The bytes of the image, empty if there is none."""
        return b"" if self._image_extension is None else self._read(self._image_extension)

    @property
    def _image_extension(self) -> str | None:
        return next((key for key, _ in alternatives(self.image_key) if key in self.members), None)

    def _read(self, extension: str) -> bytes:
        """The bytes of a member; of one that is too large those of nothing, which no condition takes."""
        member = self.members[extension]
        return self.file.read_at(member.offset, member.size) if fits_memory([member]) else b""


def _image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an image, None if `data` is not enough of one."""
    try:
        with open_image(data) as image:
            width, height = image.size
    except UndecodableError:
        return None
    return (width, height) if width and height else None


def _measure(field: str, width: int, height: int) -> float:
    shorter, longer = sorted((width, height))
    return {"width": width, "height": height, "min_side": shorter, "aspect": longer / shorter}[field]


def _scalar(value: object) -> Sequence[Value]:
    """A text, number or truth; lists, objects and null are no values, and neither is NaN."""
    if isinstance(value, str | int | float) and value == value:  # noqa: PLR0124
        return (value,)
    return ()


def parquet_rows(shard: str, columns: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """The rows of NNNNN.parquet beside a shard by their `key`, as img2dataset writes them.

    Raises:
        InputError: the file cannot be read, lacks a column, or pyarrow is missing.
    """
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("conditions on parquet: fields need pyarrow: pip install pyarrow") from error
    path = shard.removesuffix(".tar") + ".parquet"
    wanted = list(dict.fromkeys(["key", *columns]))
    try:
        file = parquet.ParquetFile(io.BytesIO(read_file(path, remote=ASK)))
        names = file.schema_arrow.names
        if missing := [name for name in wanted if name not in names]:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {some_names(names)}")
        rows = file.read(columns=wanted).to_pylist()
    except OSError as error:
        fault = f"{path}, which conditions on parquet: need, cannot be read"
        raise InputError(f"{fault}: {error}; {hint(error)}") from error
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no parquet file ({error}); write it again") from error
    return {str(row["key"]): row for row in rows}
