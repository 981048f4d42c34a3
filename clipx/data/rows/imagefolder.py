"""A folder of pictures with a table that describes them, as HF's imagefolder has it (`metadata.csv`)."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from clipx.data.rows.folders import files_in, hidden_file, is_hidden, is_picture
from clipx.data.rows.picture_keys import picture_key
from clipx.data.rows.row import LeftOutError, Row, Rows
from clipx.data.rows.tables import Table
from clipx.data.rows.values import Record


class ImagefolderRows(Rows):
    """The rows of the table; pictures of the folder that it does not name are passed over, which is said."""

    def __init__(self, table: Table, folder: Path) -> None:
        self._table, self._folder = table, folder
        self.block_rows, self.uses, self.keeps_all = table.block_rows, table.uses, table.keeps_all

    def __len__(self) -> int:
        return len(self._table)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        return self._table.read(row)

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return self._table.identity()

    def column_names(self) -> Sequence[str]:
        """See `Rows.column_names`."""
        return self._table.column_names()

    def records(self) -> Iterator[Record]:
        """See `Rows.records`."""
        return self._table.records()

    def column(self, name: str) -> Iterator[object]:
        """See `Rows.column`."""
        return self._table.column(name)

    def picture_keys(self) -> Iterator[bytes | None] | None:
        """See `Rows.picture_keys`."""
        return self._table.picture_keys()

    def labels(self) -> Iterator[object] | None:
        """See `Rows.labels`."""
        return self._table.labels()

    def files(self) -> Iterator[str]:
        """See `Rows.files`."""
        return self._table.files()

    def class_names(self) -> Sequence[str]:
        """See `Rows.class_names`."""
        return self._table.class_names()

    def passed_over(self) -> Sequence[LeftOutError]:
        """See `Rows.passed_over`."""
        return self._passed_over

    @cached_property
    def _passed_over(self) -> list[LeftOutError]:
        named, folder = set(self.picture_keys() or ()), str(self._folder.absolute())
        names = [name for name in files_in(self._folder) if is_picture(name) and picture_key(name, folder) not in named]
        return [
            hidden_file(name) if is_hidden(name) else LeftOutError("not in the table", name, "no row has its name")
            for name in names
        ]
