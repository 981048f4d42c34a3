"""Rows of one picture are found wherever they stand, in the order of their first rows."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from clipx.data.rows.row import Row, Rows
from clipx.making.groups import group_rows, merged


class Keys(Rows):
    """Rows with these picture keys."""

    def __init__(self, keys: list[bytes | None] | None) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys or ())

    def read(self, row: int) -> Row:
        raise NotImplementedError

    def identity(self) -> list[object]:
        return []

    def picture_keys(self) -> Iterator[bytes | None] | None:
        return None if self._keys is None else iter(self._keys)


@pytest.mark.parametrize("seed", range(20))
def test_groups_equal_those_of_a_dictionary(seed: int) -> None:
    draw = random.Random(seed)
    kinds = [draw.randbytes(8) + draw.choice([b"a", b"b"]) * 8 for _ in range(8)]
    kinds += [kinds[0][:8] + b"c" * 8, kinds[1][:15] + b"\0"]  # differ in one half alone
    keys = [draw.choice([None, *kinds]) for _ in range(draw.randrange(2, 60))]
    expected: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        expected.setdefault(("alone", row) if key is None else key, []).append(row)
    groups = group_rows(Keys(keys))
    if groups is None:
        assert len(expected) == len(keys)
        return
    assert [groups.rows(sample).tolist() for sample in range(len(groups))] == list(expected.values())


def test_without_a_picture_that_comes_twice_there_are_none() -> None:
    assert group_rows(Keys(None)) is None
    assert group_rows(Keys([None, b"a" * 16, b"b" * 16, None])) is None
    groups = group_rows(Keys([b"a" * 16, None, b"a" * 16]))
    assert groups is not None
    assert all(isinstance(groups.rows(sample), np.ndarray) for sample in range(2))


def test_fields_that_differ_become_lists() -> None:
    rows = [
        Row("first", b"x", ["a", "b"], {"id": 1, "split": "train", "n": 0}),
        Row("second", b"x", ["b", "c"], {"id": 2, "split": "train"}),
    ]
    record = {"id": [1, 2], "split": "train", "n": [0, None]}
    assert merged(rows) == Row("first", b"x", ["a", "b", "c"], record)
    assert merged(rows[1:]) is rows[1]
