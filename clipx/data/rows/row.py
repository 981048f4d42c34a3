"""What a person has, seen as rows: each becomes a sample, or is left out for a reason.

Every kind of source (`tables`, `folders`, `shard_rows`) gives rows by their number, from any process and in any order,
so that shards can be made in parallel, in any order, and again.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

from clipx.data.captions import decode_record
from clipx.data.decode import UndecodableError
from clipx.data.rows.values import Record, as_json
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
    "nothing in it",
]

RECORD = "json"
"""The member of a sample that holds its record."""
ROWS_WITH_NAMES = 1000
"""Rows whose fields are the columns of a source that does not list them: fields may be absent from some rows."""

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
    image: bytes | Path | None
    """Encoded, or the file that holds it; None if there is none, where rows need none."""
    captions: list[str]
    """None of them blank; none at all only where rows need no caption, or have labels."""
    record: Record = field(default_factory=dict)
    """Whatever else is known: becomes the sample's json member."""
    label: object = None
    """Of its class, as the source has it: a number or a word; None if it has none."""
    image_field: str | None = None
    """The field of the record that names the picture, if it is one."""


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
    keeps_all = False
    """Whether records hold all columns but the picture's, by their own names: see `TableColumns.keeps_all`."""

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

    def number(self, row: int) -> int:
        """The number that a row is known by: in the whole source, where these rows are a part of it."""
        return row

    def column_names(self) -> Sequence[str]:
        """The columns, or the fields that rows have; of a source that does not list them those of its first rows."""
        return list(dict.fromkeys(name for record in islice(self.records(), ROWS_WITH_NAMES) for name in record))

    def records(self) -> Iterator[Record]:
        """The fields of each row, as a sample's json member holds them; empty for a row that cannot be read.

        Those of captions and of the picture are not among them, unless the source keeps all.
        """
        for row in range(len(self)):
            try:
                yield fields_in(self.read(row))
            except LeftOutError:
                yield {}

    def column(self, name: str) -> Iterator[object]:
        """The value of each row in a column, as JSON has it; None for one that is empty or cannot be read.

        Raises:
            InputError: there is no such column.
        """
        self.require_column(name)
        return (record.get(name) for record in self.records())

    def has_column(self, name: str) -> bool:
        """Whether any row has a column: of a source that does not list them perhaps a late one alone."""
        return name in self.column_names() or any(name in record for record in self.records())

    def require_column(self, name: str) -> None:
        """Raises an InputError if there is no such column."""
        names = self.column_names()
        if name not in names:
            near = [other for other in names if other.lower() == name.lower()] or get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? The columns are" if near else "the columns are"
            raise InputError(f"there is no column {name!r}; {hint} {some_names(names) or 'none'}")

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


def fields_in(content: Row | StoredSample) -> Record:
    """The fields of a row but the picture's, as a sample's json member holds them; empty if that cannot be read."""
    if isinstance(content, StoredSample):
        try:
            return decode_record(content.fields, RECORD) if RECORD in content.fields else {}
        except UndecodableError:
            return {}
    return as_json({name: value for name, value in content.record.items() if name != content.image_field})


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which columns hold what; those that are not given are found by their usual names."""

    image: str | None = None
    captions: Sequence[str] = ()
    joined_by: str | None = None
    """What stands between the texts of all caption columns, which are one caption then; None: each is a caption."""
    label: str | None = None
    """Not given, a column of a usual name is taken only where none holds captions, or where its type says it."""
    needs_captions: bool = True
    """Whether rows with neither caption nor label are left out; if not, no column has to hold captions."""
    finds_label: bool = False
    """Whether a column of labels is looked for beside captions, too."""
    needs_image: bool = True
    """Whether rows without a picture are left out; if not, no column has to hold pictures."""
    keeps_all: bool = False
    """Whether a row's record holds every column but the picture's, by its own name, and no column is one of captions
    or labels; then `needs_captions` is false. Labels that are numbers by their type become the names of their classes.
    Where pictures are not needed, none is looked for by its usual name."""

    def resolve(self, names: Sequence[str], origin: str, *, typed: Sequence[str] = ()) -> "TableColumns":
        """All of them, as `names` of `origin` have them.

        Args:
            typed: the columns that hold labels by their type.

        Raises:
            InputError: a column is not there, or has no usual name.
        """
        assert not self.keeps_all or not (self.needs_captions or self.captions or self.label), "fields, not captions"
        image = self._image(names, origin)
        label = self._label(names, origin, typed)
        captions = [] if label and not self.captions and not _has_usual(names) else self.caption_names(names, origin)
        for name in (image, *captions, label):
            if name is not None and names.count(name) > 1:
                raise InputError(f"{origin} has {names.count(name)} columns {name!r}; give each a name of its own")
        return replace(self, image=image, captions=captions, label=label)

    def _image(self, names: Sequence[str], origin: str) -> str | None:
        """The column of pictures; None if there is none, and none has to be."""
        if self.image is None and not self.needs_image:
            return None if self.keeps_all else _usual(names, _IMAGE_COLUMNS)
        return _column(names, [self.image] if self.image else _IMAGE_COLUMNS, origin, "image")

    def _label(self, names: Sequence[str], origin: str, typed: Sequence[str]) -> str | None:
        """The column of labels; None if there is none, or none is wanted."""
        if self.keeps_all:
            return None
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
        if self.keeps_all:
            return []
        if not self.captions and not self.needs_captions and not _has_usual(names):
            return []
        return [_column(names, choice, origin, "caption") for choice in wanted]


ALL_COLUMNS = TableColumns(needs_captions=False, needs_image=False, keeps_all=True)
"""Of tables that are fitted or predicted: whatever there is, by its name; a column of pictures is named besides."""


def _has_usual(names: Sequence[str]) -> bool:
    """Whether a column of captions has a usual name."""
    return any(name.lower() in _CAPTION_COLUMNS for name in names)


def _usual_label(names: Sequence[str]) -> str | None:
    return _usual(names, _LABEL_COLUMNS)


def _usual(names: Sequence[str], words: Sequence[str]) -> str | None:
    return next((name for word in words for name in names if name.lower() == word), None)


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
