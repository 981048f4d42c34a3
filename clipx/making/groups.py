"""Which rows make one sample: those of one picture, wherever they stand in the source.

A table with a row per caption names each picture several times; as samples of their own those rows would be each
other's negatives. Pictures are compared by 16 bytes per row, so finding the groups takes about 80 bytes of memory per
row, and 16 afterwards: an estimate from 2 million rows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clipx.data.rows.row import Row, Rows
from clipx.data.rows.values import Record

_ROWS_PER_REPORT = 10_000


class Groups:
    """The rows of each sample, ascending; samples stand in the order of their first rows."""

    def __init__(self, rows_R: np.ndarray, starts_S: np.ndarray) -> None:
        self._rows_R, self._ends_S = rows_R, np.append(starts_S[1:], len(rows_R))
        self._starts_S = starts_S

    def __len__(self) -> int:
        return len(self._starts_S)

    def rows(self, sample: int) -> np.ndarray:
        """The rows of a sample."""
        return self._rows_R[self._starts_S[sample] : self._ends_S[sample]]


def group_rows(rows: Rows, *, on_progress: Callable[[int, int], None] | None = None) -> Groups | None:
    """The samples that rows make; None if no picture comes twice. `on_progress` gets (rows looked at, rows)."""
    keys = rows.picture_keys()
    if keys is None:
        return None
    buffer = bytearray(16 * len(rows))
    for row, key in enumerate(keys):
        buffer[16 * row : 16 * row + 16] = key or row.to_bytes(16, "big")  # no hash begins with so many zeros
        if on_progress is not None and row % _ROWS_PER_REPORT == 0:
            on_progress(row, len(rows))
    keys_R = np.frombuffer(buffer, dtype=np.uint64).reshape(-1, 2)
    order_R = np.lexsort((keys_R[:, 1], keys_R[:, 0]))  # stable: rows of one picture stay ascending
    sorted_R = keys_R[order_R]
    is_first_R = np.ones(len(order_R), dtype=bool)
    is_first_R[1:] = (sorted_R[1:] != sorted_R[:-1]).any(axis=1)
    if is_first_R.all():
        return None
    first_of_R = np.empty(len(order_R), dtype=np.int64)
    first_of_R[order_R] = order_R[is_first_R][np.cumsum(is_first_R) - 1]
    rows_R = np.argsort(first_of_R, kind="stable")
    starts_S = np.flatnonzero(np.diff(first_of_R[rows_R], prepend=-1))
    return Groups(rows_R, starts_S)


def merged(rows: list[Row]) -> Row:
    """One row with the captions of all, each caption once.

    Fields that are equal in all rows stay as they are; another becomes a list with a value per row.
    """
    first = rows[0]
    if len(rows) == 1:
        return first
    captions = list(dict.fromkeys(caption for row in rows for caption in row.captions))
    names = dict.fromkeys(name for row in rows for name in row.record)
    record = {name: _field([row.record for row in rows], name) for name in names}
    return replace(first, captions=captions, record=record)


def _field(records: list[Record], name: str) -> object:
    values = [record.get(name) for record in records]
    return values[0] if all(value == values[0] for value in values) else values
