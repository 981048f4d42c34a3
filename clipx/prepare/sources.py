"""From what a person names to rows: finds out what kind of source each address is."""

import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipx.data.index.shard_index import build_index, load_index
from clipx.errors import InputError
from clipx.prepare.folders import CocoRows, FolderRows
from clipx.prepare.rows import Chain, Rows, TableColumns
from clipx.prepare.shard_rows import ShardRows
from clipx.prepare.tables import ArrowTable, CsvTable, JsonlTable, ListTable, ParquetTable, Table
from clipx.storage.files import is_local

_TABLES: Mapping[str, type[Table]] = {
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".jsonl": JsonlTable,
    ".ndjson": JsonlTable,
    ".parquet": ParquetTable,
    ".arrow": ArrowTable,
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # HF's imagefolder


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How sources are read."""

    columns: TableColumns = field(default_factory=TableColumns)
    image_folder: Path | None = None
    """Where paths in tables start from; None means the table's own folder."""
    index: str | None = None
    """Folder of an index of the shards; None means the index beside them, which is made if it is missing."""


def open_rows(
    sources: Sequence[str], options: SourceOptions, *, on_progress: Callable[[int, int], None] | None = None
) -> Rows:
    """The rows of all sources, one after the other; `on_progress` gets (shards done, shards) while shards are indexed.

    Sources are folders, tables (CSV, TSV, JSONL, parquet, arrow), COCO's captions_*.json, saved HF data sets, shards.

    Raises:
        InputError: a source that is not there, is of no known kind, or has no row.
    """
    parts = [part for source in sources for part in _open(source, options, on_progress)]
    rows = parts[0] if len(parts) == 1 else Chain(parts)
    if not len(rows):
        raise InputError(f"{', '.join(sources)}: no row in it; give a source with pictures and captions")
    return rows


def _open(source: str, options: SourceOptions, on_progress: Callable[[int, int], None] | None) -> list[Rows]:
    path = Path(source).expanduser()
    if _is_shards(source, path):
        if options.index is not None:
            return [ShardRows(load_index([source], index_dir=options.index))]
        return [ShardRows(build_index([source], index_dir=None, on_progress=on_progress))]
    if path.is_dir():
        return _open_folder(path, options)
    if path.is_file():
        return [_open_file(path, options)]
    if matches := sorted(glob.glob(str(path))):
        return [part for match in matches for part in _open(match, options, on_progress)]
    raise InputError(f"{source}: no such file or folder; give pictures, a table, a saved data set, or shards")


def _is_shards(source: str, path: Path) -> bool:
    if not is_local(source) or source.endswith(".tar") or "::" in source:
        return True
    return path.is_dir() and any(path.glob("*.tar"))


def _open_folder(folder: Path, options: SourceOptions) -> list[Rows]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(state.parent) for state in sorted(folder.glob("*/state.json")))
        raise InputError(f"{folder} holds several splits; name one or more of {splits}")
    if (folder / "state.json").is_file():
        return [_open_file(path, options) for path in _saved_files(folder)]
    for name in _METADATA:
        if (folder / name).is_file():
            return [_open_file(folder / name, options)]
    if tables := sorted(folder.glob("*.parquet")):
        return [_open_file(table, options) for table in tables]
    return [FolderRows(folder, columns=options.columns)]


def _saved_files(folder: Path) -> list[Path]:
    """The arrow files of a data set that HF datasets saved."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [folder / file["filename"] for file in state["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}/state.json is not as HF datasets' save_to_disk writes it: {error!r}") from error


def _open_file(path: Path, options: SourceOptions) -> Rows:
    image_folder = path.parent if options.image_folder is None else options.image_folder
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return _open_json(path, options.columns, image_folder)
        if suffix in _TABLES:
            return _TABLES[suffix](path, columns=options.columns, image_folder=image_folder)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    known = ", ".join([*_TABLES, ".json", ".tar"])
    raise InputError(f"{path}: {suffix or 'a file without an extension'} is none of {known}; convert it to one of them")


def _open_json(path: Path, columns: TableColumns, image_folder: Path) -> Rows:
    """COCO's captions, or a list of objects."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; for an object per line name it .jsonl") from error
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        return ListTable(path, content, columns=columns, image_folder=image_folder)
    return CocoRows(path, content, image_folder=image_folder)
