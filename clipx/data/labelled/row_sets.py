"""Sets that are rows with labels: folders of classes, tables, saved data sets, CIFAR; or rows with captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipx.data.labelled.benchmark import templates_beside
from clipx.data.labelled.sets import (
    AnySet,
    CaptionedImage,
    ClassificationSet,
    LabelledImage,
    MultiLabelImage,
    MultiLabelSet,
    RetrievalSet,
)
from clipx.data.labelled.splits import choose_split, named
from clipx.data.rows.class_lists import names_beside
from clipx.data.rows.classes import Classes, find_classes
from clipx.data.rows.file_states import whole_identity
from clipx.data.rows.layouts import is_split_name
from clipx.data.rows.opening import SourceOptions, open_rows, splits_of
from clipx.data.rows.row import LeftOutError, Row, Rows, TableColumns
from clipx.data.rows.source_files import image_of
from clipx.errors import InputError

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_COLUMNS = TableColumns(needs_captions=False, finds_label=True)


@dataclass(frozen=True)
class LabelledRows:
    """The images of rows with a label each."""

    rows: Rows
    classes: Classes
    place: Path

    def images(self) -> Iterator[LabelledImage]:
        """Every image with its class.

        Raises:
            InputError: a row has no image or no label.
        """
        for number in range(len(self.rows)):
            row, data = _read(self.rows, number)
            labels = self.classes.numbers(row.label)
            if labels is None:
                raise InputError(f"{row.name} of {self.place} has no label; give it one, or leave its row out")
            yield LabelledImage(name=row.name, data=data, label=labels[0])

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return [*_identity(self.rows, self.place), list(self.classes.names)]


@dataclass(frozen=True)
class MultiLabelRows:
    """The images of rows with a list of labels each."""

    rows: Rows
    classes: Classes
    place: Path

    def images(self) -> Iterator[MultiLabelImage]:
        """Every image with its classes.

        Raises:
            InputError: a row has no image.
        """
        for number in range(len(self.rows)):
            row, data = _read(self.rows, number)
            yield MultiLabelImage(name=row.name, data=data, labels=self.classes.numbers(row.label) or ())

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return [*_identity(self.rows, self.place), list(self.classes.names)]


@dataclass(frozen=True)
class CaptionedRows:
    """The images of rows with captions; rows of one image are one."""

    rows: Rows
    place: Path

    def images(self) -> Iterator[CaptionedImage]:
        """Every image with its captions.

        Raises:
            InputError: a row has no image, or an image no caption.
        """
        for numbers in self._by_image():
            row, data = _read(self.rows, numbers[0])
            captions = [*row.captions, *(text for other in numbers[1:] for text in _row(self.rows, other).captions)]
            if not captions:
                raise InputError(f"{row.name} of {self.place} has no caption; give it one, or leave its row out")
            yield CaptionedImage(name=row.name, data=data, captions=tuple(captions))

    def _by_image(self) -> list[list[int]]:
        keys = self.rows.picture_keys()
        if keys is None:
            return [[number] for number in range(len(self.rows))]
        found: dict[bytes | int, list[int]] = {}
        for number, key in enumerate(keys):
            found.setdefault(number if key is None else key, []).append(number)
        return list(found.values())

    def identity(self) -> list[object]:
        """See `ImageSource.identity`."""
        return _identity(self.rows, self.place)


def _identity(rows: Rows, place: Path) -> list[object]:
    """Changes when the rows do, or a file of theirs."""
    return [str(place.absolute()), *whole_identity(rows)]


def open_row_set(place: Path, *, split: str) -> AnySet:
    """The set in a folder or file that `open_rows` reads: for classification if it has labels, else for retrieval.

    Raises:
        InputError: it is of no known kind, has no such split, no row, or neither labels nor captions; its labels are
            wrong (`find_classes`).
    """
    part, rows = _open(place, split)
    name = named(place, part, split) if place.is_dir() else place.name
    root = place if place.is_dir() else place.parent
    classes = find_classes(rows, origin=str(place), names=names_beside(root))
    if classes is not None:
        templates = templates_beside(root, required=False)
        names = classes.names
        if classes.several:
            several = MultiLabelRows(rows, classes, place)
            return MultiLabelSet(name=name, split=part, source=several, class_names=names, templates=templates)
        source = LabelledRows(rows, classes, place)
        return ClassificationSet(name=name, split=part, source=source, class_names=names, templates=templates)
    if not _row(rows, 0).captions:
        raise InputError(f"{place} has neither labels nor captions; name the column of its labels `label`")
    return RetrievalSet(name=name, split=part, source=CaptionedRows(rows, place))


def _open(place: Path, split: str) -> tuple[str | None, Rows]:
    """The part of a set to read, and its rows."""
    tables = _split_tables(place)
    parts = splits_of(place) or list(tables)
    part = choose_split(parts, split, origin=str(place))
    if part in tables:
        return part, open_rows([str(tables[part])], SourceOptions(columns=_COLUMNS))
    splits = [] if part is None else [part]
    return part, open_rows([str(place)], SourceOptions(columns=_COLUMNS, splits=splits))


def _split_tables(place: Path) -> dict[str, Path]:
    """The tables in a folder that are called as splits are, by split."""
    if not place.is_dir():
        return {}
    tables = (path for path in sorted(place.iterdir()) if path.suffix.lower() in _TABLES and path.is_file())
    return {path.stem: path for path in tables if is_split_name(path.stem)}


def _row(rows: Rows, number: int) -> Row:
    try:
        row = rows.read(number)
    except LeftOutError as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise InputError(f"{error.name}: {error.reason}{detail}; mend it, or leave it out of the set") from error
    assert isinstance(row, Row), "shards are read otherwise"
    return row


def _read(rows: Rows, number: int) -> tuple[Row, bytes]:
    row = _row(rows, number)
    try:
        return row, image_of(row)
    except LeftOutError as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise InputError(f"{error.name}: {error.reason}{detail}; mend it, or leave it out of the set") from error
