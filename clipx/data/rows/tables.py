"""Tables with a row per image or per caption: the base of all, lists in memory, parquet, arrow.

Of parquet one row group at a time is in memory, and arrow files are mapped into it: tables may be larger than it.
"""

import importlib
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

from clipx.data.rows.class_lists import class_labels, names_beside
from clipx.data.rows.picture_keys import picture_key
from clipx.data.rows.row import ROWS_WITH_NAMES, LeftOutError, Row, Rows, TableColumns
from clipx.data.rows.table_row import fields_of, is_url, path_of, row_of
from clipx.data.rows.values import Record, cell_text, plain
from clipx.errors import InputError
from clipx.storage.failures import unreadable
from clipx.storage.files import file_state

_PICTURE_TYPES = ("binary", "large_binary", "fixed_size_binary", "struct")  # of arrow; what else there is, are paths


class Table(Rows):
    """The rows of one file; images are bytes, HF datasets' {bytes, path}, or paths, relative ones in `image_folder`.

    Raises:
        InputError: the file is not what its name says, or lacks such columns.
    """

    uses: Collection[str] = (
        *("--image-column", "--caption-column", "--join-captions", "--label-column", "--image-folder"),
    )

    lists_columns = True
    """Whether the file does, or any row may have one of its own."""

    def __init__(self, path: Path, *, columns: TableColumns, image_folder: Path) -> None:
        self._path, self._image_folder = path, image_folder
        self._columns = columns
        self._column_names = self._scan()
        typed = self._typed_labels()
        self._columns = columns.resolve(self._column_names, str(path), typed=list(typed))
        self._typed_names = typed.get(self._columns.label or "", ())
        self.keeps_all = columns.keeps_all
        self._named = dict(typed) if columns.keeps_all else {}

    def _typed_labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of each column that is of labels by its type."""
        return {}

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
    def _column(self, name: str) -> Iterator[object]:
        """The value of each row in a column, in their order; None for rows that cannot be read."""

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        name = f"{self._path} row {row}"
        try:
            values = self._with_names(self._values(row))
        except (ValueError, RecursionError) as error:
            raise LeftOutError("unreadable row", name, str(error)) from error
        except OSError as error:
            raise unreadable(str(self._path), error) from error
        return row_of(values, self._columns, folder=self._image_folder, name=name)

    def column_names(self) -> Sequence[str]:
        """See `Rows.column_names`."""
        return self._column_names

    def has_column(self, name: str) -> bool:
        """See `Rows.has_column`."""
        return name in self.column_names() if self.lists_columns else super().has_column(name)

    def records(self) -> Iterator[Record]:
        """See `Rows.records`."""
        try:
            for values in self._all_values():
                yield fields_of(self._with_names(values), self._columns)
        except OSError as error:
            raise unreadable(str(self._path), error) from error

    def _all_values(self) -> Iterator[Record]:
        """The values of each row by column, perhaps without the picture's; empty for one that cannot be read."""
        for row in range(len(self)):
            try:
                yield self._values(row)
            except (ValueError, RecursionError):
                yield {}

    def _names_in(self, records: Iterable[Record]) -> list[str]:
        """The names in the first of these records, and of the columns that were asked for those that any has."""
        wanted = {self._columns.image, *self._columns.captions, self._columns.label} - {None}
        names: dict[str, None] = {}
        for number, record in enumerate(records):
            if number < ROWS_WITH_NAMES:
                names |= dict.fromkeys(record)
            elif wanted <= names.keys():
                break
            else:
                names |= dict.fromkeys(name for name in record if name in wanted)
        return list(names)

    def _with_names(self, values: Record) -> Record:
        """The values, in which labels that are numbers by their type are the names of their classes."""
        return {name: self._name_of(name, value) for name, value in values.items()} if self._named else values

    def _name_of(self, column: str, value: object) -> object:
        names = self._named.get(column)
        if isinstance(value, list):
            return [self._name_of(column, part) for part in value]
        if names is None or not isinstance(value, int):
            return value
        return names[value] if 0 <= value < len(names) else None

    def column(self, name: str) -> Iterator[object]:
        """See `Rows.column`."""
        self.require_column(name)
        return (plain({name: self._name_of(name, value)}).get(name) for value in self._column(name))

    def picture_keys(self) -> Iterator[bytes | None] | None:
        """See `Rows.picture_keys`."""
        if self._columns.image is None:
            return None
        folder = str(self._image_folder.absolute())
        return (picture_key(image, folder) for image in self._column(self._columns.image))

    def labels(self) -> Iterator[object] | None:
        """See `Rows.labels`."""
        return None if self._columns.label is None else self._column(self._columns.label)

    def files(self) -> Iterator[str]:
        """See `Rows.files`."""
        if self._columns.image is None or self._holds_pictures():
            return iter(())
        images = (image for image in self._column(self._columns.image) if isinstance(image, str) and cell_text(image))
        return (path_of(image, str(self._image_folder)) for image in images if not is_url(image))

    def _holds_pictures(self) -> bool:
        """Whether the pictures stand in the table itself, by its type."""
        return False

    def class_names(self) -> Sequence[str]:
        """See `Rows.class_names`."""
        return names_beside(self._path.parent) or self._typed_names

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [str(self._path), *file_state(str(self._path)), str(self._image_folder), asdict(self._columns)]


class ListTable(Table):
    """A list of objects in a JSON file, given as `records`."""

    lists_columns = False

    def __init__(self, path: Path, records: Sequence[Record], *, columns: TableColumns, image_folder: Path) -> None:
        self._records = records
        super().__init__(path, columns=columns, image_folder=image_folder)

    def _scan(self) -> Sequence[str]:
        return self._names_in(self._records)

    def _values(self, row: int) -> Record:
        return self._records[row]

    def _column(self, name: str) -> Iterator[object]:
        return (record.get(name) for record in self._records)

    def __len__(self) -> int:
        return len(self._records)


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

    def _holds_pictures(self) -> bool:
        return str(self._open().schema_arrow.field(self._columns.image).type).startswith(_PICTURE_TYPES)

    def _values(self, row: int) -> Record:
        if row not in self._group[0]:
            group = bisect_right(self._ends, row)
            self._group = range(0), None  # frees it before the next is read
            table = self._read_group(group)
            self._group = range(self._ends[group] - table.num_rows, self._ends[group]), table
        rows, table = self._group
        (values,) = table.slice(row - rows.start, 1).to_pylist()
        return values

    def _read_group(self, group: int, columns: list[str] | None = None) -> Any:
        try:
            return self._open().read_row_group(group, columns=columns)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(str(error)) from error  # pyarrow calls damaged pages an OSError

    def _all_values(self) -> Iterator[Record]:
        names = [name for name in self._column_names if name != self._columns.image]
        for group in range(len(self._ends)):
            try:
                table = self._read_group(group, names)
            except ValueError:
                yield from repeat({}, self._group_size(group))
                continue
            # without any column a table has no rows
            yield from table.to_pylist() if names else repeat({}, self._group_size(group))

    def _group_size(self, group: int) -> int:
        return self._ends[group] - (self._ends[group - 1] if group else 0)

    def _typed_labels(self) -> Mapping[str, Sequence[str]]:
        return class_labels(self._open().schema_arrow.metadata, folder=self._path.parent)

    def _column(self, name: str) -> Iterator[object]:
        for group in range(len(self._ends)):
            try:
                column = self._read_group(group, [name]).column(name)
            except ValueError:
                yield from repeat(None, self._group_size(group))
                continue
            yield from (value.as_py() for value in column)


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

    def _holds_pictures(self) -> bool:
        return str(self._open().schema.field(self._columns.image).type).startswith(_PICTURE_TYPES)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_table": None}  # pickled it would be a copy of the file

    def __len__(self) -> int:
        return self._length

    def _values(self, row: int) -> Record:
        (values,) = self._open().slice(row, 1).to_pylist()
        return values

    def _all_values(self) -> Iterator[Record]:
        names = [name for name in self._column_names if name != self._columns.image]
        for batch in self._open().select(names).to_batches(max_chunksize=ROWS_WITH_NAMES):
            yield from batch.to_pylist() if names else repeat({}, batch.num_rows)

    def _typed_labels(self) -> Mapping[str, Sequence[str]]:
        return class_labels(self._open().schema.metadata, folder=self._path.parent)

    def _column(self, name: str) -> Iterator[object]:
        return (value.as_py() for value in self._open().column(name))


def _import(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{path}: reading it needs pyarrow: pip install pyarrow") from error
