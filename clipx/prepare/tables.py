"""Tables with a row per image: CSV, TSV, JSONL, parquet, arrow; and lists in memory.

Of text files only the place of each row is kept, of parquet one row group at a time, and arrow files are mapped into
memory: tables may be larger than it. CSV is read by the standard library: pyarrow's reader holds all of it in memory,
cannot keep a row that is too short, takes all that follows a quote that is never closed, and makes a number of 007.
"""

import csv
import importlib
import io
import json
import re
import sys
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from clipx.errors import InputError
from clipx.prepare.rows import LeftOutError, Record, Row, TableColumns, row_of
from clipx.storage.files import file_state

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's numbers: "007" stays a text
_ROWS_WITH_NAMES = 1000  # of a JSON file: fields may be absent from some rows


class Table(ABC):
    """The rows of one file; images are bytes, HF datasets' {bytes, path}, or paths, relative ones in `image_folder`.

    Raises:
        InputError: the file is not what its name says, or lacks such columns.
    """

    block_rows = 1

    def __init__(self, path: Path, *, columns: TableColumns, image_folder: Path) -> None:
        self._path, self._image_folder = path, image_folder
        self._columns = columns.resolve(self._scan(), str(path))

    @abstractmethod
    def _scan(self) -> Sequence[str]:
        """Finds the rows; returns the names of the columns."""

    @abstractmethod
    def _values(self, row: int) -> Record:
        """The values of a row by column.

        Raises:
            ValueError: the row cannot be read.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Rows, good or not."""

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        name = f"{self._path} row {row}"
        try:
            values = self._values(row)
        except ValueError as error:
            raise LeftOutError("unreadable row", name, str(error)) from error
        return row_of(values, self._columns, folder=self._image_folder, name=name)

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [str(self._path), *file_state(str(self._path)), str(self._image_folder), asdict(self._columns)]


class ListTable(Table):
    """A list of objects in a JSON file, given as `records`."""

    def __init__(self, path: Path, records: Sequence[Record], *, columns: TableColumns, image_folder: Path) -> None:
        self._records = records
        super().__init__(path, columns=columns, image_folder=image_folder)

    def _scan(self) -> Sequence[str]:
        return list(dict.fromkeys(key for record in self._records[:_ROWS_WITH_NAMES] for key in record))

    def _values(self, row: int) -> Record:
        return self._records[row]

    def __len__(self) -> int:
        return len(self._records)


class _TextTable(Table):
    """A text file of which the places of the rows are known, 8 bytes each."""

    _starts: "array[int]"

    def __len__(self) -> int:
        return len(self._starts)

    def _read(self, row: int) -> bytes:
        """The bytes of a row, and empty lines after it."""
        start, *stop = self._starts[row : row + 2]
        with open(self._path, "rb") as file:
            file.seek(start)
            return file.read(stop[0] - start if stop else -1)


class CsvTable(_TextTable):
    """A CSV or TSV file whose first row names the columns; values that are numbers become such in the record."""

    def _scan(self) -> Sequence[str]:
        csv.field_size_limit(sys.maxsize)
        self._starts = array("q")
        with open(self._path, "rb") as file:
            self._delimiter = _delimiter(self._path, file.readline())
            file.seek(0)
            lines = _Lines(file)
            # strict: a quote that is never closed would take all that follows into one caption
            rows = csv.reader(lines, delimiter=self._delimiter, strict=True)
            line = 1
            try:
                self._names = [name.strip() for name in next(rows, [])]
                start, line = lines.position, rows.line_num + 1
                for values in rows:
                    if values:  # empty lines belong to no row
                        self._starts.append(start)
                    start, line = lines.position, rows.line_num + 1
            except (UnicodeDecodeError, csv.Error) as error:
                raise InputError(
                    f"{self._path} line {line}: {error}; mend it, or save the file as CSV in UTF-8"
                ) from error
        return self._names

    def _values(self, row: int) -> Record:
        values = next(csv.reader(_Lines(io.BytesIO(self._read(row))), delimiter=self._delimiter))
        texts = {self._columns.image, *self._columns.captions}
        return {
            column: json.loads(value) if column not in texts and _NUMBER.fullmatch(value) else value
            for column, value in zip(self._names, values, strict=False)
        }


class _Lines:
    """The lines of a file as text, and how many bytes have been read; `csv` takes as many as a row needs."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._file = file
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.position += len(line)
            yield line.decode("utf-8-sig" if self.position == len(line) else "utf-8")


def _delimiter(path: Path, head: bytes) -> str:
    """A tab if the name or the first line says so, else comma or semicolon."""
    if path.suffix.lower() == ".tsv" or (b"\t" in head and b"," not in head):
        return "\t"
    return ";" if b";" in head and b"," not in head else ","


class JsonlTable(_TextTable):
    """A file with a JSON object per line."""

    def _scan(self) -> Sequence[str]:
        self._starts = array("q")
        start = 0
        with open(self._path, "rb") as file:
            for line in file:
                if line.strip():
                    self._starts.append(start)
                start += len(line)
        names: dict[str, None] = {}
        for row in range(min(len(self), _ROWS_WITH_NAMES)):
            try:
                names |= dict.fromkeys(self._values(row))
            except ValueError:
                continue  # left out when its turn comes
        return list(names)

    def _values(self, row: int) -> Record:
        record = json.loads(self._read(row))
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__}, not an object")
        return record


class ParquetTable(Table):
    """A parquet file; fast if rows are read in their order."""

    def _scan(self) -> Sequence[str]:
        file = self._open()
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._ends = list(accumulate(sizes))
        self.block_rows = max(sizes, default=1)
        self._group: tuple[range, Any] = range(0), None
        return list(file.schema_arrow.names)

    def _open(self) -> Any:
        parquet = _import("pyarrow.parquet", self._path)
        try:
            return parquet.ParquetFile(self._path)
        except ValueError as error:  # pyarrow's errors of form derive from it
            raise InputError(f"{self._path} is no parquet file: {' '.join(str(error).split())}") from error

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _values(self, row: int) -> Record:
        if row not in self._group[0]:
            group = bisect_right(self._ends, row)
            self._group = range(0), None  # frees it before the next is read
            table = self._open().read_row_group(group)
            self._group = range(self._ends[group] - table.num_rows, self._ends[group]), table
        rows, table = self._group
        (values,) = table.slice(row - rows.start, 1).to_pylist()
        return values


class ArrowTable(Table):
    """An arrow file, as HF datasets' `save_to_disk` writes them."""

    def _scan(self) -> Sequence[str]:
        self._table: Any = None
        self._length = self._open().num_rows
        return list(self._open().column_names)

    def _open(self) -> Any:
        if self._table is None:
            arrow = _import("pyarrow", self._path)
            try:
                source = arrow.memory_map(str(self._path))
                try:
                    self._table = arrow.ipc.open_stream(source).read_all()
                except arrow.ArrowInvalid:
                    self._table = arrow.ipc.open_file(source).read_all()
            except arrow.ArrowInvalid as error:
                raise InputError(f"{self._path} is no arrow file: {' '.join(str(error).split())}") from error
        return self._table

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_table": None}  # pickled it would be a copy of the file

    def __len__(self) -> int:
        return self._length

    def _values(self, row: int) -> Record:
        (values,) = self._open().slice(row, 1).to_pylist()
        return values


def _import(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{path}: reading it needs pyarrow: pip install pyarrow") from error
