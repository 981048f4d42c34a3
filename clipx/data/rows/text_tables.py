"""Tables that are text: CSV and its kin, and JSONL; only the place of each row is kept, 8 bytes each.

CSV is read by the standard library: pyarrow's reader holds all of it in memory, cannot keep a row that is too short,
takes all that follows a quote that is never closed, and makes a number of 007.
"""

import csv
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from clipx.data.rows.cells import label_or_labels, number_or_text, text_or_texts
from clipx.data.rows.dialects import TextFormat, find_dialect
from clipx.data.rows.folders import is_picture
from clipx.data.rows.row import TableColumns
from clipx.data.rows.source_files import is_wide
from clipx.data.rows.tables import Table
from clipx.data.rows.values import Record
from clipx.errors import InputError


class _TextTable(Table):
    """A text file of which the places of the rows are known."""

    _starts: "array[int]"

    def __len__(self) -> int:
        return len(self._starts)

    def _read(self, row: int) -> bytes:
        """The bytes of a row, and empty lines after it."""
        start, *stop = self._starts[row : row + 2]
        with open(self._path, "rb") as file:
            file.seek(start)
            return file.read(stop[0] - start if stop else -1)

    def _first_line(self) -> bytes:
        """The first line that is not empty."""
        with open(self._path, "rb") as file:
            line = next((line for line in file if line.removeprefix(b"\xef\xbb\xbf").strip()), b"")
        if is_wide(line):
            raise InputError(f"{self._path} is UTF-16 or UTF-32; save it as UTF-8")
        return line


class CsvTable(_TextTable):
    """A CSV or TSV file whose first row names the columns, or such a file without one if its format names them.

    Values become numbers if JSON writes them back as they are; a list of texts several captions, of labels several
    labels.
    """

    uses = (*Table.uses, "--header", "--quoting none")

    def __init__(self, path: Path, *, columns: TableColumns, image_folder: Path, format: TextFormat) -> None:
        self._format = format
        super().__init__(path, columns=columns, image_folder=image_folder)

    def _scan(self) -> Sequence[str]:
        self._starts = array("q")
        self._dialect = find_dialect(self._first_line(), self._path, self._columns, self._format)
        self._names: list[str] = list(self._dialect.names)
        for start, values in self._rows():
            if self._names:
                self._starts.append(start)
            else:
                self._names = [name.strip() for name in values]
        names, self._names = self._names, _different(self._names)
        return names

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Where each row of the file starts, the names of the columns too, and its values; empty lines are no rows."""
        with open(self._path, "rb") as file:
            lines = _Lines(file)
            # strict: a quote that is never closed would take all that follows into one caption
            rows = self._dialect.reader(lines, strict=True)
            start, line = 0, 1
            try:
                for values in rows:
                    if values:
                        yield start, values
                    start, line = lines.position, rows.line_num + 1
            except UnicodeDecodeError as error:
                raise InputError(f"{self._path} line {line}: {error}; save the file as CSV in UTF-8") from error
            except csv.Error as error:
                quotes = ", or give --quoting none if quotes are a part of the texts" * self._dialect.quoting
                raise InputError(f"{self._path} line {line}: {error}; mend it{quotes}") from error

    def _values(self, row: int) -> Record:
        reader = self._dialect.reader(_Lines(io.BytesIO(self._read(row))))
        values = next(reader)
        return self._record(values, row, num_lines=reader.line_num)

    def _record(self, values: Sequence[str], row: int, *, num_lines: int) -> Record:
        self._require_whole(values, row, num_lines=num_lines)
        return {column: self._value(column, value) for column, value in zip(self._names, values, strict=False)}

    def _all_values(self) -> Iterator[Record]:
        for row, values in enumerate(self._cells()):
            try:
                yield self._record(values, row, num_lines=1 + sum(value.count("\n") for value in values))
            except ValueError:
                yield {}

    def _value(self, column: str, cell: str) -> object:
        if column == self._columns.image:
            return self._dialect.image(cell)
        if column == self._columns.label:
            return label_or_labels(cell)
        return text_or_texts(cell) if column in self._columns.captions else number_or_text(cell)

    def column_names(self) -> Sequence[str]:
        """See `Rows.column_names`."""
        return self._names

    def _require_whole(self, values: Sequence[str], row: int, *, num_lines: int) -> None:
        """Raises a ValueError if a part of the row's caption may be lost, or may be another row."""
        num_columns = len(self._names)
        if any(map(str.strip, values[num_columns:])):
            raise ValueError(
                f"{len(values)} values in {num_columns} columns; "
                f"put quotes around a value that holds {self._dialect.delimiter!r}"
            )
        if len(values) < num_columns and self._names[len(values) - 1] in self._columns.captions:
            raise ValueError(f"it ends within its caption, after {len(values)} of {num_columns} values")
        if num_lines > 1 and self._takes_in_rows(values, row, num_lines):
            raise ValueError(f"its quotes take in {num_lines} lines, which look like rows; is it --quoting none?")

    def _takes_in_rows(self, values: Sequence[str], row: int, num_lines: int) -> bool:
        """Whether two lines of a row look like rows: something like the row's picture stands where it should."""
        if self._columns.image is None:
            return False
        place, num_columns = self._names.index(self._columns.image), len(self._names)
        if place >= len(values):
            return False
        extension = Path(values[place]).suffix.lower()
        num_alike = 0
        for line in self._read(row).decode("utf-8-sig").split("\n")[:num_lines]:
            parts = line.split(self._dialect.delimiter)
            if len(parts) >= num_columns:
                names = [parts[at].strip('" \r') for at in (place, place - num_columns)]
                num_alike += any(self._is_like(name, extension) for name in names)
        return num_alike > 1

    def _is_like(self, name: str, extension: str) -> bool:
        """Whether a text may name a picture, in a table of which one has this extension; without one it must exist."""
        if extension:
            return is_picture(name) or Path(name).suffix.lower() == extension
        return name != "" and os.path.isfile(os.path.join(self._image_folder, name))

    def _column(self, name: str) -> Iterator[object]:
        place = self._names.index(name)
        return (self._value(name, values[place]) if place < len(values) else None for values in self._cells())

    def _cells(self) -> Iterator[list[str]]:
        """The values of each row, in one pass over the file."""
        rows = self._rows()
        if not self._dialect.names:
            next(rows)  # the names of the columns
        return (values for _, values in rows)

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [*super().identity(), asdict(self._format)]


def _different(names: Sequence[str]) -> list[str]:
    """The names, with pandas' numbers for those that come again: none becomes another's."""
    different: list[str] = []
    for name in names:
        count = names[: len(different)].count(name)
        while (new := f"{name}.{count}" if count else name) in different or (count and new in names):
            count += 1
        different.append(new)
    return different


class _Lines:
    """The lines of a file as text, and how many bytes have been read; `csv` takes as many as a row needs."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._file = file
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.position += len(line)
            yield line.decode("utf-8-sig" if self.position == len(line) else "utf-8")


class JsonlTable(_TextTable):
    """A file with a JSON object per line."""

    lists_columns = False

    def _scan(self) -> Sequence[str]:
        self._first_line()
        self._starts = array("q")
        start = 0
        with open(self._path, "rb") as file:
            for line in file:
                if line.strip():
                    self._starts.append(start)
                start += len(line)
        return self._names_in(self._all_values())

    def _values(self, row: int) -> Record:
        record = json.loads(self._read(row))
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__}, not an object")
        return record

    def _column(self, name: str) -> Iterator[object]:
        with open(self._path, "rb") as file:
            for line in file:
                if line.strip():
                    yield self._value_in(line, name)

    def _value_in(self, line: bytes, name: str) -> object:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return record.get(name) if isinstance(record, dict) else None
