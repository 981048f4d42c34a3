"""Opens a table for a fitted model, and says what is wrong with it before the model is loaded; needs no torch."""

from dataclasses import replace
from pathlib import Path

from clipx.config.fit import FitConfig
from clipx.data.rows.named_files import lost_picture
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import ALL_COLUMNS, Rows
from clipx.errors import InputError
from clipx.pretrained.input_columns import input_columns, require_columns


def open_table(
    table: str, config: FitConfig, *, absent: bool = False, image_folder: Path | None = None
) -> tuple[Rows, str | None]:
    """The rows of a table for a fitted model, and the column of their keys, if the run had one that is there.

    Args:
        table: CSV, TSV, JSON lines, parquet, arrow, a folder, shards.
        config: of the model, resolved.
        absent: whether columns of inputs may be missing.
        image_folder: where relative paths of pictures begin; None: the table's folder.

    Raises:
        InputError: it is no table, or a column of an input is not there.
    """
    found = open_rows([table], SourceOptions(columns=ALL_COLUMNS))
    wanted, image, key = input_columns(config), config.image_column, config.data.key
    names = list(found.column_names())
    if not found.shards():  # of which each record would be asked for
        further = [name for name in [*wanted, key] if name is not None and name not in names]
        names += [name for name in dict.fromkeys(further) if found.has_column(name)]
    names_pictures = "--image-column" in found.uses and image in names  # else they are the rows, as in shards
    options = SourceOptions(
        columns=replace(ALL_COLUMNS, image=image if names_pictures else None), image_folder=image_folder
    )
    rows = open_rows([table], options)
    if not absent:
        there = dict.fromkeys([*names, *([image] if image is not None and rows.shards() else [])])
        require_columns(wanted, there, origin=table, hint="give --absent")
    if not len(rows):
        raise InputError(f"{table} has no row; give one that has")
    if not absent:
        _require_some_picture(rows, table)
    return rows, key if key in names else None


def _require_some_picture(rows: Rows, table: str) -> None:
    """Raises an InputError if pictures are looked for in the wrong place."""
    if (lost := lost_picture(rows)) is not None:
        raise InputError(
            f"{table}: not one of the pictures that it names is there, as {lost}; say with --image-folder where their "
            "paths begin, or predict without them by --absent"
        )
