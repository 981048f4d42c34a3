"""Cosines of pictures and their texts as NNNNN.parquet beside NNNNN.tar, where `clipx data index --where` reads them.

A parquet file that is there already, img2dataset's for example, keeps all its rows and columns, and gets a column
`cosine`; one with a column `cosine` that is not of clipx stays as it is, and is an error.
"""

import io
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

from clipx.errors import InputError, RunError
from clipx.storage.failures import hint
from clipx.storage.files import is_local, read_file, write_file
from clipx.use.embeddings import Embeddings, shard_file
from clipx.use.key_table import as_stored, read_keys

COSINE = "cosine"
_MARK = b"clipx.cosine_of"
"""Key of a parquet file's metadata under which the model's fingerprint stands: what has it is clipx's own column."""


def require_beside(shards: Sequence[str]) -> None:
    """Checks, before anything is embedded, that cosines can be written beside these shards.

    Raises:
        InputError: there is no shard, two have one name, a folder cannot be written, or a parquet file is in the way.
    """
    if not shards:
        raise InputError("--beside writes beside shards, and the input has none; leave it out, or give shards")
    if len(set(shards)) < len(shards):
        twice = [shard for shard in dict.fromkeys(shards) if shards.count(shard) > 1]
        raise InputError(f"--beside: {twice[0]} is given twice; name each shard once")
    for folder in {os.path.dirname(shard) or "." for shard in shards if is_local(shard)}:
        if not os.access(folder, os.W_OK):
            raise InputError(f"--beside: {folder} cannot be written; copy the shards to where you may, or leave it out")
    for shard in shards:
        _present(_path(shard))


def write_beside(embeddings: Embeddings, shards: Sequence[str]) -> int:
    """Writes the cosines of an embeddings folder beside the shards that it was made from; returns the files.

    Raises:
        InputError: see `require_beside`; no shard has both pictures and texts.
        RunError: a file cannot be written.
    """
    if not {"image", "text"} <= set(embeddings.manifest.columns):
        raise InputError("--beside needs pictures with texts, and here are none; leave it out")
    fingerprint = embeddings.manifest.fingerprint
    paths = {as_stored(shard): _path(shard) for shard in shards}
    for shard, cosines in _by_shard(embeddings, set(paths)):
        _write(paths.pop(shard), cosines, fingerprint=fingerprint)
    for path in paths.values():  # none of their samples was embedded, and a file that lacks stops who reads the others
        _write(path, {}, fingerprint=fingerprint)
    return len(shards)


def _by_shard(embeddings: Embeddings, shards: set[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each shard with the cosines of its samples by key; the rows of one are neighbours."""
    entries = _entries(embeddings, shards)
    for shard, group in groupby(entries, key=lambda entry: entry[0]):
        yield shard, {key: cosine for _, key, cosine in group if cosine is not None}


def _entries(embeddings: Embeddings, shards: set[str]) -> Iterator[tuple[str, str, float | None]]:
    for number in range(len(embeddings.manifest.shard_rows)):
        table = read_keys(embeddings.folder / shard_file(number, "parquet"), columns=("key", "name", COSINE))
        for row in table.to_pylist():
            shard = row["name"].removesuffix(f" {row['key']}")  # the name of a sample is its shard's and its key
            if shard in shards:
                yield shard, row["key"], row[COSINE]


def _write(path: str, cosines: dict[str, float], *, fingerprint: str) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    table = _present(path)
    if table is None:
        table = arrow.table({"key": arrow.array(list(cosines), arrow.string())})
    elif COSINE in table.column_names:
        table = table.drop_columns([COSINE])
    keys = [str(key) for key in table.column("key").to_pylist()]
    if cosines and not cosines.keys() & set(keys):
        raise InputError(f"{path} has none of the keys of its shard; move it away, or leave out --beside")
    values = arrow.array([cosines.get(key) for key in keys], arrow.float32())
    metadata = (table.schema.metadata or {}) | {_MARK: fingerprint.encode()}
    table = table.append_column(COSINE, values).replace_schema_metadata(metadata)
    out = io.BytesIO()
    parquet.write_table(table, out, compression="zstd")
    try:
        write_file(path, out.getvalue())
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise RunError(f"{problem}; {hint(error)}, and run the same command again: the embeddings are kept") from error


def _present(path: str) -> Any:
    """The table that is at `path`, None if there is none.

    Raises:
        InputError: it is no parquet file, has no keys, or cosines of somebody else.
    """
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        content = read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); leave out --beside") from error
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is no parquet file; move it away, or leave out --beside") from error
    if "key" not in table.column_names:
        raise InputError(f"{path} has no column 'key', so nothing can be added to it; move it away")
    if COSINE in table.column_names and _MARK not in (table.schema.metadata or {}):
        raise InputError(f"{path} has a column 'cosine' that clipx did not write; rename it, or leave out --beside")
    return table


def _path(shard: str) -> str:
    return shard.removesuffix(".tar") + ".parquet"
