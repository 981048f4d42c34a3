"""What a person has, seen as rows: each becomes a sample, or is left out for a reason.

Every kind of source (`tables`, `folders`, `shard_rows`) gives rows by their number, from any process and in any order,
so that shards can be made in parallel, in any order, and again.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipx.config.paths import expand_home
from clipx.data.captions import is_blank
from clipx.errors import InputError, some_names

Reason = Literal[
    "no picture",
    "missing file",
    "unreadable picture",
    "no caption",
    "no label",
    "unreadable row",
    "truncated shard",
    "a URL",
    "hidden file",
    "not in the table",
]
Record = Mapping[str, object]

# Names that people give these columns, the usual ones first.
_IMAGE_COLUMNS = (
    *("image", "file_name", "filename", "filepath", "file_path", "image_path", "path", "image_file", "file"),
    *("image_name", "img", "jpg"),
)
_CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "txt", "title", "alt_text", "alt", "description", "comment"),
)
_LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "category", "target", "cls", "fine_label", "class_id"),
    *("label_id", "category_id"),
)
_URL = re.compile(r"(https?|ftp|s3|gs|gcs|hf|az)://", re.IGNORECASE)


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
    image: bytes | Path
    """Encoded, or the file that holds it."""
    captions: list[str]
    """None of them blank; none at all only where rows need no caption, or have labels."""
    record: Record = field(default_factory=dict)
    """Whatever else is known: becomes the sample's json member."""
    label: object = None
    """Of its class, as the source has it: a number or a word; None if it has none."""


@dataclass(frozen=True)
class StoredSample:
    """A sample of a shard, to be copied as it is."""

    name: str
    key: str
    fields: dict[str, bytes]


class Rows(ABC):
    """A source; pickles without what it holds open."""

    block_rows = 1
    """Rows that can only be read together; 1 if each is read alone."""
    uses: Collection[str] = ()
    """Options of `clipx data make`, of those that say how a source is read, that have a meaning for this kind."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows, good or not."""

    @abstractmethod
    def read(self, row: int) -> Row | StoredSample:
        """The row of this number.

        Raises:
            LeftOutError: it makes no sample.
            InputError, RunError: the storage fails.
        """

    @abstractmethod
    def identity(self) -> list[object]:
        """Changes when the source does; plain values that JSON keeps."""

    def picture_keys(self) -> Iterator[bytes | None] | None:
        """For each row 16 bytes that are equal for rows of one picture, None for one that has none.

        None instead of an iterator: no two rows are of one picture.
        """
        return None

    def shards(self) -> Sequence[str]:
        """Paths of the shards whose samples are rows."""
        return ()

    def labels(self) -> Iterator[object] | None:
        """The label of each row, None for one that has none; None instead of an iterator: no row has one."""
        return None

    def files(self) -> Iterator[str]:
        """The files of pictures that `identity` says nothing of; a file may come several times."""
        return iter(())

    def class_names(self) -> Sequence[str]:
        """The classes by number, where the source or a file beside it lists them."""
        return ()

    def label_words(self) -> Sequence[str]:
        """All words that are labels, in the order of their classes, where the source knows them without its rows."""
        return ()

    def passed_over(self) -> Sequence[LeftOutError]:
        """Files that look like pictures but are no rows."""
        return ()

    def notes(self) -> Sequence[str]:
        """What a person should know of the source, in lines."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which columns hold what; those that are not given are found by their usual names."""

    image: str | None = None
    captions: Sequence[str] = ()
    label: str | None = None
    """Not given, a column of a usual name is taken only where none holds captions, or where its type says it."""
    needs_captions: bool = True
    """Whether rows with neither caption nor label are left out; if not, no column has to hold captions."""
    finds_label: bool = False
    """Whether a column of labels is looked for beside captions, too."""

    def resolve(self, names: Sequence[str], origin: str, *, typed: Sequence[str] = ()) -> "TableColumns":
        """All of them, as `names` of `origin` have them.

        Args:
            typed: the columns that hold labels by their type.

        Raises:
            InputError: a column is not there, or has no usual name.
        """
        image = _column(names, [self.image] if self.image else _IMAGE_COLUMNS, origin, "image")
        label = self._label(names, origin, typed)
        captions = [] if label and not self.captions and not _has_usual(names) else self.caption_names(names, origin)
        for name in (image, *captions, *([label] if label else [])):
            if names.count(name) > 1:
                raise InputError(f"{origin} has {names.count(name)} columns {name!r}; give each a name of its own")
        return replace(self, image=image, captions=captions, label=label)

    def _label(self, names: Sequence[str], origin: str, typed: Sequence[str]) -> str | None:
        """The column of labels; None if there is none, or none is wanted."""
        if self.label is not None:
            return _column(names, [self.label], origin, "label")
        if usual := _usual_label(typed):
            return usual
        if len(typed) > 1:
            raise InputError(
                f"{origin} has labels of {len(typed)} kinds ({some_names(typed)}); name one with --label-column"
            )
        if typed:
            return typed[0]
        has_captions = bool(self.captions) or _has_usual(names)
        return _usual_label(names) if self.finds_label or not has_captions else None

    def caption_names(self, names: Sequence[str], origin: str) -> list[str]:
        """The columns of captions among `names`.

        Raises:
            InputError: see `resolve`.
        """
        wanted: list[Sequence[str]] = [[caption] for caption in self.captions] or [_CAPTION_COLUMNS]
        if not self.captions and not self.needs_captions and not _has_usual(names):
            return []
        return [_column(names, choice, origin, "caption") for choice in wanted]


def _has_usual(names: Sequence[str]) -> bool:
    """Whether a column of captions has a usual name."""
    return any(name.lower() in _CAPTION_COLUMNS for name in names)


def _usual_label(names: Sequence[str]) -> str | None:
    return next((name for word in _LABEL_COLUMNS for name in names if name.lower() == word), None)


def _column(names: Sequence[str], wanted: Sequence[str], origin: str, kind: str) -> str:
    if not names:
        raise InputError(f"{origin} has no columns; it must have those of pictures and captions")
    column = next((name for name in wanted if name in names), None)
    if column is None:  # Image, Caption
        column = next((name for word in wanted for name in names if name.lower() == word.lower()), None)
    if column is None:
        which = f"column {wanted[0]!r}" if len(wanted) == 1 else f"{kind} column of a usual name"
        raise InputError(f"{origin} has no {which}; name one of {some_names(names)} with --{kind}-column")
    return column


def row_of(values: Record, columns: TableColumns, *, folder: Path, name: str) -> Row:
    """The row that a table's or a list's values by column describe, with resolved `columns`.

    Relative paths of images start from `folder`; `name` is the row's in messages if its image is no file.

    Raises:
        LeftOutError: no caption or no image.
    """
    assert columns.image is not None
    image = values.get(columns.image)
    record = {key: value for key, value in values.items() if key not in columns.captions}
    if isinstance(image, Mapping):
        record[columns.image] = image.get("path")
        image = of_struct(image)
    if isinstance(image, str):
        name = image
    captions = captions_of([values.get(caption) for caption in columns.captions])
    label = None if columns.label is None else values.get(columns.label)
    if not captions and columns.needs_captions and columns.label is None:
        raise LeftOutError("no caption", name)
    return Row(name, _image(image, folder, name), captions, plain(record), label)


def of_struct(image: Mapping[str, object]) -> object:
    """What an image of HF datasets holds: bytes, or the path of the file in which it stayed."""
    return image.get("path") if image.get("bytes") is None else image["bytes"]


def _image(value: object, folder: Path, name: str) -> bytes | Path:
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise LeftOutError("no picture", name)
    if _URL.match(value):
        raise LeftOutError("a URL", name, "download the pictures first, for example with img2dataset")
    return Path(path_of(value, str(folder)))


def path_of(value: str, folder: str) -> str:
    """The path that a table names, relative ones from `folder`."""
    return os.path.join(folder, expand_home(value.removeprefix("file://")))


def captions_of(values: Sequence[object]) -> list[str]:
    """All captions in values that are strings or lists of them; blank ones and what is no text are passed over."""
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    # JSON can spell half of a surrogate pair, which is no character and has no encoding
    strings = [text.encode("utf-8", "ignore").decode() for text in texts if isinstance(text, str)]
    stripped = [text.lstrip("\ufeff").strip() for text in strings]
    return [text for text in stripped if not is_blank(text)]  # \x85 is white space, but cleaned alone an ellipsis


def plain(record: Record) -> dict[str, object]:
    """The values of a record that JSON can hold: no bytes, no missing values, NaN among them; within lists null."""
    values = {key: _plain(value) for key, value in record.items()}
    return {key: value for key, value in values.items() if value is not None and value != ""}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):  # parquet's maps are tuples of key and value
        return [_plain(item) for item in value]
    no_value = isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value))
    return None if no_value else value
