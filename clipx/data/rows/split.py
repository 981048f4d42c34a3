"""Cuts rows into those that are trained on and those that are held out, by a hash: the same rows for ever."""

import math
from collections.abc import Iterator
from hashlib import blake2b
from itertools import repeat

import numpy as np

from clipx.data.rows.row import Rows
from clipx.data.rows.subset import Subset
from clipx.data.rows.values import cell_text
from clipx.errors import InputError


def split_rows(rows: Rows, share: float, *, group: str | None = None, key: str | None = None) -> tuple[Rows, Rows]:
    """The rows for training and those for validation.

    A row is for validation if the hash of its cell in the column `group`, as a fraction, is below `share`. So the rows
    of a group stay together, and a row stays on its side when others come, go, or change their places. Without a group,
    or where its cell is empty, the cell in `key` counts; without that the row's number does, and then only rows that
    are added at the end leave the others where they are.

    Args:
        share: of the groups that are held out, more than 0 and less than 1; that of the rows is near it if the groups
            are many and of one size.

    Raises:
        InputError: there is no such column, the share is out of range, or a side has no row.
    """
    if not 0 < share < 1:
        raise InputError(f"share {share:g} for validation: it must be above 0 and below 1")
    drawn_R = np.zeros(len(rows), np.uint64)
    for row, text in enumerate(_texts(rows, group, key)):
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        drawn_R[row] = int.from_bytes(digest[:8], "big")
    is_held_out_R = drawn_R < np.uint64(math.ceil(share * 2**64))
    num_held_out = int(is_held_out_R.sum())
    if num_held_out in (0, len(rows)):
        num_groups = len(np.unique(drawn_R))
        if group is None and num_groups < len(rows):
            group = key  # cells of which come again
        raise InputError(_one_side(len(rows), num_groups, share, group=group, is_held_out=num_held_out > 0))
    train, held_out = (Subset(rows, np.flatnonzero(chosen_R)) for chosen_R in (~is_held_out_R, is_held_out_R))
    return train, held_out


def _texts(rows: Rows, group: str | None, key: str | None) -> Iterator[str]:
    """For each row the text that decides its side."""
    groups, keys = (repeat(None, len(rows)) if name is None else rows.column(name) for name in (group, key))
    for row, cells in enumerate(zip(groups, keys, strict=True)):
        texts = (f"{kind} {text}" for kind, cell in zip("gk", cells, strict=True) if (text := cell_text(cell)))
        yield next(texts, f"r {rows.number(row)}")


def _one_side(num_rows: int, num_groups: int, share: float, *, group: str | None, is_held_out: bool) -> str:
    sides = ("training", "validation") if is_held_out else ("validation", "training")
    if group is None:
        what, rule = f"{num_rows:,} rows", "each row is drawn by itself"
        other = "have more rows"
    else:
        what = f"{num_rows:,} rows in {num_groups:,} group{'s' * (num_groups != 1)} of {group!r}"
        rule, other = "a group stays on one side", "name a column with more groups"
    return (
        f"share {share:g} of {what} leaves no row for {sides[0]} and all for {sides[1]}: {rule}; give another share, "
        f"{other}, or name a table for validation"
    )
