"""Several sources as one."""

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, repeat

from clipx.data.rows.row import LeftOutError, Row, Rows, StoredSample
from clipx.data.rows.values import Record
from clipx.errors import InputError, some_names


class Chain(Rows):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self.block_rows = max(part.block_rows for part in parts)
        self.uses = {option for part in parts for option in part.uses}
        self.keeps_all = any(part.keeps_all for part in parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, row: int) -> Row | StoredSample:
        """See `Rows.read`."""
        part = bisect.bisect_right(self._ends, row)
        return self._parts[part].read(row - (self._ends[part - 1] if part else 0))

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [part.identity() for part in self._parts]

    def column_names(self) -> Sequence[str]:
        """See `Rows.column_names`; those that any source has."""
        return list(dict.fromkeys(name for part in self._parts for name in part.column_names()))

    def has_column(self, name: str) -> bool:
        """See `Rows.has_column`."""
        return any(part.has_column(name) for part in self._parts)

    def records(self) -> Iterator[Record]:
        """See `Rows.records`."""
        return chain.from_iterable(part.records() for part in self._parts)

    def column(self, name: str) -> Iterator[object]:
        """See `Rows.column`; None for the rows of a source that does not have it."""
        self.require_column(name)
        return chain.from_iterable(
            part.column(name) if name in part.column_names() else repeat(None, len(part)) for part in self._parts
        )

    def picture_keys(self) -> Iterator[bytes | None] | None:
        """See `Rows.picture_keys`."""
        keys = [part.picture_keys() for part in self._parts]
        if not any(keys):
            return None
        return chain.from_iterable(
            repeat(None, len(part)) if of_part is None else of_part
            for part, of_part in zip(self._parts, keys, strict=True)
        )

    def files(self) -> Iterator[str]:
        """See `Rows.files`."""
        return chain.from_iterable(part.files() for part in self._parts)

    def class_names(self) -> Sequence[str]:
        """See `Rows.class_names`.

        Raises:
            InputError: two sources number different classes.
        """
        labelled = [part for part in self._parts if part.labels() is not None]
        lists = list(dict.fromkeys(tuple(part.class_names()) for part in labelled))
        if len(lists) > 1:
            first, other = (some_names(names) or "none listed" for names in lists[:2])
            raise InputError(f"the sources list different classes ({first}; {other}); take them one at a time")
        return lists[0] if lists else ()

    def label_words(self) -> Sequence[str]:
        """See `Rows.label_words`; of several sources those that any has, by name."""
        words = [part.label_words() for part in self._parts if part.labels() is not None]
        return sorted({word for of_part in words for word in of_part}) if all(words) else ()

    def labels(self) -> Iterator[object] | None:
        """See `Rows.labels`."""
        labels = [part.labels() for part in self._parts]
        if not any(labels):
            return None
        return chain.from_iterable(
            repeat(None, len(part)) if of_part is None else of_part
            for part, of_part in zip(self._parts, labels, strict=True)
        )

    def shards(self) -> Sequence[str]:
        """See `Rows.shards`."""
        return [path for part in self._parts for path in part.shards()]

    def passed_over(self) -> Sequence[LeftOutError]:
        """See `Rows.passed_over`."""
        return [file for part in self._parts for file in part.passed_over()]

    def notes(self) -> Sequence[str]:
        """See `Rows.notes`."""
        return [note for part in self._parts for note in part.notes()]
