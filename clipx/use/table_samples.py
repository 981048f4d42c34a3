"""The rows of a table, as a fitted model reads them."""

from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.data.captions import alternatives
from clipx.data.rows.row import RECORD, Row, Rows, StoredSample, fields_in
from clipx.data.rows.source_files import image_or_none
from clipx.data.rows.values import cell_text, json_member


class TableRows:
    """The rows of a table, a `clipx.pretrained.row_samples.RowSource`.

    Args:
        rows: as `clipx.use.opened_table.open_table` gives them.
        config: of the model, resolved.
        key: the column that names rows; None: they have their numbers.
    """

    def __init__(self, rows: Rows, config: FitConfig, *, key: str | None) -> None:
        self._rows, self._key = rows, key
        self._extension = alternatives(config.data.source(()).image_key)[0][0]
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        """See `RowSource`."""
        return f"row {row}"

    def members(self, row: int) -> dict[str, bytes]:
        """See `RowSource`."""
        content = self._rows.read(row)
        if self._key is not None:
            self._keys[row] = cell_text(_cell(content, self._key)) or ""
        if isinstance(content, StoredSample):
            return content.fields
        members = {RECORD: json_member(content.record)}
        picture = image_or_none(content)
        if picture is not None:
            members[self._extension] = picture
        return members

    def take_key(self, row: int) -> str:
        """The key of a row that was read, "" if it has none; it is forgotten then."""
        return self._keys.pop(row, "")


def _cell(content: Row | StoredSample, column: str) -> object:
    """The cell of a row in a column, also in that of the pictures' paths, which is no field of the record."""
    if isinstance(content, Row) and column == content.image_field and isinstance(content.image, Path):
        return content.name
    return content.record.get(column) if isinstance(content, Row) else fields_in(content).get(column)
