"""Rows as samples: what predicting reads has the form of what training reads from shards, and goes the same way.

A row becomes the members of a sample: its record, a JSON object of the columns that the model reads, and its picture.
Absent is what is empty, and a picture whose file is not there; what is there and cannot be read makes the row bad.
"""

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from PIL import Image

from clipx.config.fit import FitConfig
from clipx.config.paths import expand_home
from clipx.data.build import build_transform
from clipx.data.captions import alternatives
from clipx.data.eight_bits import to_rgb
from clipx.data.fit_cells import is_absent
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.rows.row import RECORD, LeftOutError
from clipx.data.rows.table_row import of_struct
from clipx.data.rows.values import json_member
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.samples import SampleReader, SourceReader
from clipx.data.shards import BadSampleError
from clipx.errors import InputError
from clipx.pretrained.input_columns import input_columns, require_columns
from clipx.storage.failures import is_of_storage, unreadable
from clipx.storage.files import is_local, read_file


class RowSource(Protocol):
    """Rows by their number."""

    def __len__(self) -> int:
        """How many there are."""

    def members(self, row: int) -> dict[str, bytes]:
        """The members of a row's sample, read by one thread at a time.

        Raises:
            LeftOutError: the row cannot be read.
            InputError: the storage fails.
        """

    def name(self, row: int) -> str:
        """What a person finds a row by."""


class RowSamples:
    """Rows in the form of shards, a `clipx.data.sample_refs.SampleSource`; `index` of a sample is the row's number."""

    def __init__(self, rows: RowSource) -> None:
        self._rows = rows
        self.remote_sources: frozenset[int] = frozenset()
        self.wait_s = 0.0

    def read(self, ref: SampleRef) -> dict[str, bytes]:
        """See `SampleSource`."""
        try:
            return self._rows.members(ref.index)
        except LeftOutError as error:
            raise BadSampleError(f"{error.reason} ({error.detail})" if error.detail else error.reason) from error

    def name(self, ref: SampleRef) -> SampleName:
        """See `SampleSource`."""
        return SampleName(self._rows.name(ref.index), str(ref.index), ())


def row_reader(config: FitConfig, rows: RowSource) -> SampleReader:
    """Reads rows as the run that `config` describes, resolved, reads its samples in an evaluation, without targets."""
    image, described = config.model.image, config.data.source(())
    transform = build_transform(image, image_size=image.image_size, augment=None, decode=config.data.decode)
    source = SourceReader(
        name="rows",
        image_key=described.image_key,
        caption_key=RECORD,
        captions=JoinedText(config.text_columns),
        transform=transform,
        images="optional" if "image" in config.modalities else "unread",
    )
    columns = FitColumns(config, training=False, targets=False)
    return SampleReader(RowSamples(rows), [source], seed=config.seed, column_readers=[columns])


class GivenRows:
    """Rows that a program has: mappings from column to value, pictures as paths, bytes or pictures of Pillow's.

    Args:
        rows: one mapping, several, or a DataFrame of pandas.
        config: resolved.
        absent: whether a column that no row has is absent from all of them.

    Raises:
        InputError: what is given is no row, lacks a column of an input, or names pictures of which not one is there.
    """

    def __init__(self, rows: Any, config: FitConfig, *, absent: bool) -> None:
        self._rows = _mappings(rows)
        self._image_column = config.image_column
        self._extension = alternatives(config.data.source(()).image_key)[0][0]
        wanted = input_columns(config)
        self._columns = [name for name in wanted if name != self._image_column]
        if not absent and self._rows:
            there = dict.fromkeys(name for row in self._rows for name in row)
            require_columns(wanted, map(str, there), origin="rows", hint="predict with absent=True")
            self._require_some_picture()

    def _require_some_picture(self) -> None:
        """Raises an InputError if rows name files, and not one is there: paths then begin in the wrong folder."""
        cells = [] if self._image_column is None else [row.get(self._image_column) for row in self._rows]
        lost = [cell for cell in cells if _is_lost(cell)]
        if lost and all(_is_lost(cell) or is_absent(cell) for cell in cells):
            raise InputError(
                f"rows: not one of the pictures that they name is there, as {lost[0]}; relative paths begin in the "
                "current folder: give whole ones, or predict without pictures by absent=True"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        """See `RowSource`."""
        return f"row {row}"

    def members(self, row: int) -> dict[str, bytes]:
        """See `RowSource`."""
        values = self._rows[row]
        record = {name: _plain(values.get(name)) for name in self._columns}
        members = {RECORD: json_member({name: value for name, value in record.items() if not is_absent(value)})}
        if self._image_column is not None:
            picture = _picture(values.get(self._image_column), self.name(row))
            if picture is not None:
                members[self._extension] = picture
        return members


def _mappings(rows: Any) -> list[Mapping[str, Any]]:
    """Rows as mappings, in their order."""
    if callable(to_dict := getattr(rows, "to_dict", None)) and hasattr(rows, "columns"):  # pandas, not imported for it
        rows = to_dict("records")
    if isinstance(rows, Mapping):
        rows = [rows]
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise InputError(f"rows are mappings from column to value, or a DataFrame, not {type(rows).__name__}")
    listed = list(rows)
    if wrong := [place for place, row in enumerate(listed) if not isinstance(row, Mapping)]:
        kind = type(listed[wrong[0]]).__name__
        raise InputError(f"row {wrong[0]} is a {kind}; a row is a mapping from column to value")
    return cast(list[Mapping[str, Any]], listed)


def _plain(value: Any) -> Any:
    """The value of a cell as JSON has it: that of numpy's and pandas' scalars and arrays, too."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    for method in ("tolist", "item"):  # an array of numpy; a scalar of it
        if callable(convert := getattr(value, method, None)):
            return convert()
    text = str(value)
    return None if text in ("<NA>", "NaT") else text  # pandas' absent values


def _picture(value: Any, name: str) -> bytes | None:
    """The encoded picture of a cell; None if it is absent, or its file not there.

    Raises:
        LeftOutError: it cannot be read.
    """
    if isinstance(value, Mapping):
        value = of_struct(value)
    if isinstance(value, Image.Image):
        return _encoded(value, name)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value) or None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    kind = type(value).__name__
    if is_absent(value := _plain(value)):
        return None
    if not isinstance(value, str):
        shown = repr(value) if isinstance(value, int | float) else f"a value of type {kind}"
        raise LeftOutError("unreadable picture", name, f"{shown} is no path, no bytes and no picture of Pillow's")
    return _file(value, name)


def _is_lost(value: Any) -> bool:
    """Whether a cell names a file of this machine that is not there."""
    if not isinstance(value, str | os.PathLike) or is_absent(value):
        return False
    path = os.fspath(value)
    return is_local(path) and not os.path.lexists(expand_home(path))


def _file(path: str, name: str) -> bytes | None:
    try:
        return read_file(expand_home(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if is_of_storage(error):
            raise unreadable(path, error) from error
        raise LeftOutError("unreadable picture", name, f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file can have
        raise LeftOutError("unreadable picture", name, f"{path!r}: {error}") from error


def _encoded(image: Image.Image, name: str) -> bytes:
    """A file with the pixels that reading any file of the picture would give."""
    out = io.BytesIO()
    try:
        to_rgb(image).save(out, "PNG", compress_level=1)
    except (OSError, ValueError) as error:  # its file may be cut, or gone; or grey values without a range
        raise LeftOutError("unreadable picture", name, str(error)) from error
    return out.getvalue()
