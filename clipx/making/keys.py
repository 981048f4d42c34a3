"""Keys of samples that a column of the source names, in place of the numbers of rows.

A key is the cell without white space around it; 3 and 3.0 are "3". What cuts the name of a tar's member, `.` and `/`,
becomes `_`.
"""

import unicodedata
from collections.abc import Sequence

from clipx.data.rows.row import Rows
from clipx.data.rows.values import cell_text
from clipx.errors import InputError

_CUTS = str.maketrans("./", "__")
_MAX_BYTES = 1000


def sample_keys(rows: Rows, column: str) -> list[str]:
    """The key of each row.

    Raises:
        InputError: there is no such column, or a cell in it is empty or makes no key.
    """
    try:
        cells = rows.column(column)
    except InputError as error:
        raise InputError(f"--key {column}: {error}") from error
    return [_key(cell, f"--key {column}: row {rows.number(row)}") for row, cell in enumerate(cells)]


def require_different(keys: Sequence[str], firsts: Sequence[int], rows: Rows, column: str) -> None:
    """Raises an InputError if the first rows of two samples have one key."""
    if len({keys[row] for row in firsts}) == len(firsts):
        return
    row_of: dict[str, int] = {}
    for row in firsts:
        if (before := row_of.setdefault(keys[row], row)) != row:
            raise InputError(
                f"--key {column}: rows {rows.number(before)} and {rows.number(row)} have one key, {keys[row][:80]!r}; "
                "name a column whose cells differ (. and / count as _), or leave --key out"
            )


def _key(cell: object, where: str) -> str:
    text = cell_text(cell)
    if text is None:
        raise InputError(f"{where} is empty, or cannot be read; every row needs a key: fill it in, or leave --key out")
    key = text.translate(_CUTS)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        raise InputError(f"{where} holds {text[:80]!r}; a key has no control characters: change it, or leave --key out")
    if len(key.encode()) > _MAX_BYTES:
        raise InputError(
            f"{where} holds {len(key.encode()):,} bytes ({text[:40]!r}...); a key has at most {_MAX_BYTES:,}: "
            "name another column"
        )
    return key
