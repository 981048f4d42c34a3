"""What a person has, seen as rows: each becomes a sample, or is left out for a reason.

Every kind of source (`tables`, `folders`, `shard_rows`) gives rows by their number, from any process and in any order,
so that shards can be made in parallel, in any order, and again.
"""

import bisect
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal, Protocol

from clipx.errors import InputError

Reason = Literal[
    "no picture", "missing file", "unreadable picture", "no caption", "unreadable row", "truncated shard", "a URL"
]
Record = Mapping[str, object]

# Names that people give these columns, the usual ones first.
_IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "filepath", "file_path", "image_path", "path", "image_file", "file"),
    *("img", "jpg"),
)
_CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "txt", "title", "alt_text", "alt", "description")


class LeftOutError(Exception):
    """A row that makes no sample."""

    def __init__(self, reason: Reason, name: str, detail: str = "") -> None:
        super().__init__(reason, name, detail)
        self.reason, self.name, self.detail = reason, name, detail


@dataclass(frozen=True)
class Row:
    """An image with its captions."""

    name: str
    """What a person finds it by: a file, or a table and a row."""
    image: bytes
    captions: list[str]
    """None of them blank; at least one."""
    record: Record = field(default_factory=dict)
    """Whatever else is known: becomes the sample's json member."""


@dataclass(frozen=True)
class StoredSample:
    """A sample of a shard, to be copied as it is."""

    name: str
    key: str
    fields: dict[str, bytes]


class Rows(Protocol):
    """A source; pickles without what it holds open."""

    def __len__(self) -> int:
        """Rows, good or not."""

    def read(self, row: int) -> Row | StoredSample:
        """The row of this number.

        Raises:
            LeftOutError: it makes no sample.
        """

    def identity(self) -> list[object]:
        """Changes when the source does; plain values that JSON keeps."""

    @property
    def block_rows(self) -> int:
        """Rows that can only be read together; 1 if each is read alone."""


class Chain:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self.block_rows = max(part.block_rows for part in parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, row: int) -> Row | StoredSample:
        """See `Rows.read`."""
        part = bisect.bisect_right(self._ends, row)
        return self._parts[part].read(row - (self._ends[part - 1] if part else 0))

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [part.identity() for part in self._parts]


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which columns hold what; those that are not given are found by their usual names."""

    image: str | None = None
    captions: Sequence[str] = ()

    def resolve(self, names: Sequence[str], origin: str) -> "TableColumns":
        """Both of them, as `names` of `origin` have them.

        Raises:
            InputError: a column is not there, or has no usual name.
        """
        image = _column(names, [self.image] if self.image else _IMAGE_COLUMNS, origin, "image")
        return TableColumns(image=image, captions=self.caption_names(names, origin))

    def caption_names(self, names: Sequence[str], origin: str) -> list[str]:
        """The columns of captions among `names`.

        Raises:
            InputError: see `resolve`.
        """
        wanted: list[Sequence[str]] = [[caption] for caption in self.captions] or [_CAPTION_COLUMNS]
        return [_column(names, choice, origin, "caption") for choice in wanted]


def _column(names: Sequence[str], wanted: Sequence[str], origin: str, kind: str) -> str:
    if not names:
        raise InputError(f"{origin} has no columns; it must have those of pictures and captions")
    column = next((name for name in wanted if name in names), None)
    if column is None:
        which = f"column {wanted[0]!r}" if len(wanted) == 1 else f"{kind} column of a usual name"
        raise InputError(f"{origin} has no {which}; name one of {', '.join(names)} with --{kind}-column")
    return column


def row_of(values: Record, columns: TableColumns, *, folder: Path, name: str) -> Row:
    """The row that a table's or a list's values by column describe, with resolved `columns`.

    Relative paths of images start from `folder`; `name` is the row's in messages if its image is no file.

    Raises:
        LeftOutError: no caption, no image, or an image that cannot be read.
    """
    assert columns.image is not None
    image = values.get(columns.image)
    if isinstance(image, Mapping) and image.get("bytes") is None:  # an image of HF datasets that stayed in its file
        image = image.get("path")
    record = {key: value for key, value in values.items() if key not in columns.captions}
    if isinstance(image, str):
        name = image
    elif isinstance(image, Mapping):
        record[columns.image], image = image.get("path"), image["bytes"]
    captions = captions_of([values.get(caption) for caption in columns.captions])
    if not captions:
        raise LeftOutError("no caption", name)
    return Row(name, _image(image, folder, name), captions, plain(record))


def _image(value: object, folder: Path, name: str) -> bytes:
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise LeftOutError("no picture", name)
    if re.match(r"(https?|s3|gs)://", value):
        raise LeftOutError("a URL", name, "download the pictures first, for example with img2dataset")
    return read_image(folder / os.path.expanduser(value.removeprefix("file://")), name)


def read_image(path: Path, name: str) -> bytes:
    """The bytes of a file.

    Raises:
        LeftOutError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LeftOutError("missing file", name, str(path)) from error
    except OSError as error:
        raise LeftOutError("unreadable picture", name, str(error)) from error


def captions_of(values: Sequence[object]) -> list[str]:
    """All captions in values that are strings or lists of them; blank ones and what is no text are passed over."""
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    # JSON can spell half of a surrogate pair, which is no character and has no encoding
    strings = [text.encode("utf-8", "ignore").decode() for text in texts if isinstance(text, str)]
    return [text.strip() for text in strings if text.strip()]


def plain(record: Record) -> dict[str, object]:
    """The values of a record that JSON can hold: no bytes, no missing values, NaN among them."""
    return {key: value for key, value in record.items() if not _is_missing(value) and not isinstance(value, bytes)}


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
