"""Parquet files that say which rows of the input the rows of an embeddings file are.

Columns: key, name, row (its number among the input's), caption (null without one), has_image, cosine (of picture and
text before any reduction; null without both).
"""

import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from clipx.errors import InputError

_NULLABLE = ("caption", "cosine")


class KeyRow(NamedTuple):
    """What a row of embeddings is of."""

    key: str
    name: str
    row: int
    caption: str | None
    has_image: bool
    cosine: float | None


def require_pyarrow() -> None:
    """Raises InputError if keys cannot be written or read: better said before pictures are read than after."""
    _pyarrow()


def as_stored(name: str) -> str:
    """A key or name as it stands in the files: bytes of a path that are no UTF-8 become escapes.

    Parquet's strings are UTF-8; the bytes come from Python as surrogates, which have no encoding.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def encoded_keys(rows: Sequence[KeyRow]) -> bytes:
    """The rows as a parquet file; equal bytes for equal rows and one version of pyarrow."""
    arrow, parquet = _pyarrow(), import_module("pyarrow.parquet")
    schema = _schema(arrow)
    rows = [row._replace(key=as_stored(row.key), name=as_stored(row.name)) for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=schema), out, compression="zstd")
    return out.getvalue()


def read_keys(path: Path, *, columns: Sequence[str] | None = None) -> Any:
    """The table of a file that `encoded_keys` made, or some of its columns, as pyarrow's Table.

    Raises:
        InputError: it is not there, is damaged, or pyarrow is missing.
    """
    arrow, parquet = _pyarrow(), import_module("pyarrow.parquet")
    try:
        table = parquet.read_table(path, columns=list(columns or KeyRow._fields))
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); embed again") from error
    if missing := [name for name in columns or KeyRow._fields if name not in table.column_names]:
        raise InputError(f"{path} has no column {missing[0]!r}; embed again")
    return table


def key_rows(table: Any, indices: Sequence[int]) -> list[KeyRow]:
    """Some rows of a table from `read_keys`, in the order of `indices`."""
    return [KeyRow(**row) for row in table.take(list(indices)).to_pylist()]


def _schema(arrow: Any) -> Any:
    types = (arrow.string(), arrow.string(), arrow.int64(), arrow.string(), arrow.bool_(), arrow.float32())
    return arrow.schema(
        [arrow.field(name, type, nullable=name in _NULLABLE) for name, type in zip(KeyRow._fields, types, strict=True)]
    )


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise InputError("keys of embeddings are parquet files, which need pyarrow: pip install pyarrow") from error
