"""The tables of a fit run as rows that keep every column; what their columns lack is said before anything is made."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.data.rows.opening import SourceOptions, is_shards, open_rows
from clipx.data.rows.row import ALL_COLUMNS, Rows
from clipx.errors import InputError, some_names


def are_shards(addresses: Sequence[str]) -> bool:
    """Whether addresses name shards, of which nothing has to be made."""
    return all(map(is_shards, addresses))


def open_tables(addresses: Sequence[str], config: FitConfig, *, is_cut: bool) -> Rows:
    """The rows of tables or shards, with the pictures of the config's column.

    Args:
        addresses: what `data.train` or `data.val` names.
        config: of the run.
        is_cut: whether a part of the rows is held out, by the columns `data.group` and `data.key`.

    Raises:
        InputError: they cannot be read, have no row, or lack a column of the config.
    """
    if are_shards(addresses):
        return open_rows(addresses, SourceOptions(columns=ALL_COLUMNS))
    folder = config.data.image_folder
    options = SourceOptions(columns=ALL_COLUMNS, image_folder=None if folder is None else Path(folder))
    rows = open_rows(addresses, options)
    names_pictures = "--image-column" in rows.uses  # else they are the rows, as in a folder of pictures
    for key, column in _wanted(config, is_cut=is_cut):
        if names_pictures or column != config.image_column:
            _require(rows, column, key=key, origin=some_names(addresses))
    if config.image_column is None or not names_pictures:
        return rows
    return open_rows(addresses, replace(options, columns=replace(ALL_COLUMNS, image=config.image_column)))


def _wanted(config: FitConfig, *, is_cut: bool) -> Iterator[tuple[str, str]]:
    """The columns that a table must have, each after the key of the config that names it."""
    for name, column in config.input_columns():
        yield f"inputs.{name}", column
    for name, target in config.targets.items():
        yield f"targets.{name}", target.column or name
    if config.data.key is not None:
        yield "data.key", config.data.key
    if config.data.group is not None and is_cut:
        yield "data.group", config.data.group


def _require(rows: Rows, column: str, *, key: str, origin: str) -> None:
    """Raises an InputError if no row has the column."""
    names = list(rows.column_names())
    if (count := names.count(column)) > 1:
        raise InputError(f"{key}: {origin} has {count} columns {column!r}; give each a name of its own")
    if rows.has_column(column):
        return
    nearest = get_close_matches(column, names, n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    raise InputError(f"{key}: {origin} has no column {column!r}{hint}; its columns: {some_names(names) or 'none'}")
