"""From the values of a table's or a list's row, by column, to a row."""

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from clipx.config.paths import expand_home
from clipx.data.rows.row import LeftOutError, Row, TableColumns
from clipx.data.rows.values import Record, as_json, captions_of, cell_text, joined_caption, plain

_URL = re.compile(r"(https?|ftp|s3|gs|gcs|hf|az)://", re.IGNORECASE)


def row_of(values: Record, columns: TableColumns, *, folder: Path, name: str) -> Row:
    """The row that a table's or a list's values by column describe, with resolved `columns`.

    Relative paths of images start from `folder`; `name` is the row's in messages if its image is no file.

    Raises:
        LeftOutError: no caption or no image.
    """
    image = None if columns.image is None else values.get(columns.image)
    record = _fields(values, columns, but=_no_fields(columns))
    if isinstance(image, Mapping):
        if columns.image in record:
            record[columns.image] = image.get("path")
        image = of_struct(image)
    if isinstance(image, str) and image.strip():
        name = image
    captions = captions_in(values, columns.captions, columns)
    label = None if columns.label is None else values.get(columns.label)
    if not captions and columns.needs_captions and columns.label is None:
        raise LeftOutError("no caption", name)
    picture = _image(image, folder, name, needed=columns.needs_image)
    return Row(name, picture, captions, plain(record), label, columns.image)


def _no_fields(columns: TableColumns) -> Collection[str | None]:
    """The columns that are not in the record of a row."""
    return (columns.image,) if columns.keeps_all else columns.captions


def fields_of(values: Record, columns: TableColumns) -> Record:
    """The record of a row without the picture's field, as a sample's json member holds it."""
    no_fields = {columns.image, *_no_fields(columns)}
    return as_json(plain(_fields(values, columns, but=no_fields)))


def _fields(values: Record, columns: TableColumns, *, but: Collection[str | None]) -> dict[str, object]:
    """The fields of a row; where all are kept, what is infinite is its text, for JSON would take it for absent."""
    fields = {name: value for name, value in values.items() if name not in but}
    if columns.keeps_all:
        return {name: str(value) if _is_infinite(value) else value for name, value in fields.items()}
    return fields


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def captions_in(values: Record, names: Sequence[str], columns: TableColumns) -> list[str]:
    """The captions in the columns of these names, several or joined to one as `columns` say."""
    cells = [values.get(name) for name in names]
    return captions_of(cells) if columns.joined_by is None else joined_caption(cells, columns.joined_by)


def of_struct(image: Mapping[str, object]) -> object:
    """What an image of HF datasets holds: bytes, or the path of the file in which it stayed."""
    return image.get("path") if image.get("bytes") is None else image["bytes"]


def _image(value: object, folder: Path, name: str, *, needed: bool) -> bytes | Path | None:
    if isinstance(value, bytes) and value:
        return value
    if not needed and cell_text(value) is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise LeftOutError("no picture", name)
    if is_url(value):
        raise LeftOutError("a URL", name, "download the pictures first, for example with img2dataset")
    return Path(path_of(value, str(folder)))


def is_url(value: str) -> bool:
    """Whether what a table names is an address in a network."""
    return _URL.match(value) is not None


def path_of(value: str, folder: str) -> str:
    """The path that a table names, relative ones from `folder`."""
    return os.path.join(folder, expand_home(value.removeprefix("file://")))
