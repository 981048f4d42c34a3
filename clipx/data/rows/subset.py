"""Some rows of a source, as rows."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import compress
from typing import TypeVar

import numpy as np

from clipx.data.rows.row import Row, Rows, StoredSample
from clipx.data.rows.values import Record

Value = TypeVar("Value")


class Subset(Rows):
    """The rows of these numbers, ascending; files that are no rows are passed over by the whole source alone."""

    def __init__(self, rows: Rows, numbers_R: np.ndarray) -> None:
        assert (np.diff(numbers_R) > 0).all(), "each row once, in the source's order"
        self._rows, self._numbers_R = rows, numbers_R
        self.uses, self.keeps_all = rows.uses, rows.keeps_all
        if rows.block_rows > 1:  # about as many as a block of the source has of these rows
            self.block_rows = max(2, -(-rows.block_rows * len(numbers_R) // len(rows)))

    def __len__(self) -> int:
        return len(self._numbers_R)

    def read(self, row: int) -> Row | StoredSample:
        """See `Rows.read`."""
        return self._rows.read(int(self._numbers_R[row]))

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        numbers = blake2b(self._numbers_R.astype("<i8").tobytes(), digest_size=16)
        return [self._rows.identity(), "of which", len(self), numbers.hexdigest()]

    def number(self, row: int) -> int:
        """See `Rows.number`."""
        return self._rows.number(int(self._numbers_R[row]))

    def column_names(self) -> Sequence[str]:
        """See `Rows.column_names`."""
        return self._rows.column_names()

    def records(self) -> Iterator[Record]:
        """See `Rows.records`."""
        return self._chosen(self._rows.records())

    def column(self, name: str) -> Iterator[object]:
        """See `Rows.column`."""
        return self._chosen(self._rows.column(name))

    def picture_keys(self) -> Iterator[bytes | None] | None:
        """See `Rows.picture_keys`."""
        keys = self._rows.picture_keys()
        return None if keys is None else self._chosen(keys)

    def labels(self) -> Iterator[object] | None:
        """See `Rows.labels`."""
        labels = self._rows.labels()
        return None if labels is None else self._chosen(labels)

    def _chosen(self, values: Iterator[Value]) -> Iterator[Value]:
        """Of a value for each row of the source those of these rows."""
        is_chosen_R = np.zeros(len(self._rows), bool)
        is_chosen_R[self._numbers_R] = True
        return compress(values, is_chosen_R)

    def shards(self) -> Sequence[str]:
        """See `Rows.shards`."""
        return self._rows.shards()

    def files(self) -> Iterator[str]:
        """See `Rows.files`; those of the other rows, too."""
        return self._rows.files()

    def class_names(self) -> Sequence[str]:
        """See `Rows.class_names`."""
        return self._rows.class_names()

    def label_words(self) -> Sequence[str]:
        """See `Rows.label_words`."""
        return self._rows.label_words()

    def notes(self) -> Sequence[str]:
        """See `Rows.notes`."""
        return self._rows.notes()
