"""From what a person names to rows: finds out what kind of source each address is."""

import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipx.config.paths import expand_home
from clipx.data.index.shard_index import build_index, load_index
from clipx.data.rows.chain import Chain
from clipx.data.rows.cifar import SPLITS as CIFAR_SPLITS
from clipx.data.rows.cifar import CifarRows, cifar_folder
from clipx.data.rows.class_folders import open_pictures, split_folders
from clipx.data.rows.dialects import TextFormat
from clipx.data.rows.imagefolder import ImagefolderRows
from clipx.data.rows.json_lists import CocoRows, KarpathyRows
from clipx.data.rows.layouts import METADATA, chosen_splits, split_names, tables_in
from clipx.data.rows.row import Rows, TableColumns
from clipx.data.rows.shard_rows import ShardRows
from clipx.data.rows.tables import ArrowTable, ListTable, ParquetTable, Table
from clipx.data.rows.text_tables import CsvTable, JsonlTable
from clipx.errors import InputError, some_names
from clipx.storage.files import is_local

_TEXTS = (".csv", ".tsv", ".tab", ".psv", ".txt", ".token")
_TABLES: Mapping[str, type[Table]] = {
    ".jsonl": JsonlTable,
    ".ndjson": JsonlTable,
    ".parquet": ParquetTable,
    ".arrow": ArrowTable,
}


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How sources are read."""

    columns: TableColumns = field(default_factory=TableColumns)
    text_format: TextFormat = field(default_factory=TextFormat)
    image_folder: Path | None = None
    """Where paths in tables start from; None means the table's own folder."""
    splits: Sequence[str] = ()
    """Those to take of a source that has several."""
    class_folders: bool | None = None
    """Whether the folders of a folder of pictures are classes; None: see `open_pictures`."""
    index: str | None = None
    """Folder of an index of the shards; None means the index beside them, which is made if it is missing."""

    def given(self) -> list[str]:
        """The options, as people write them, that some kinds of source have no use for; splits are looked at there."""
        given = {
            "--image-column": self.columns.image,
            "--caption-column": self.columns.captions,
            "--join-captions": self.columns.joined_by is not None,
            "--label-column": self.columns.label,
            "--class-folders": self.class_folders,
            "--image-folder": self.image_folder,
            "--header": self.text_format.header,
            "--quoting none": not self.text_format.quoting,
            "--index": self.index,
        }
        return [option for option, value in given.items() if value]


def open_rows(
    sources: Sequence[str], options: SourceOptions, *, on_progress: Callable[[int, int], None] | None = None
) -> Rows:
    """The rows of all sources, one after the other; `on_progress` gets (shards done, shards) while shards are indexed.

    Sources are folders, tables (CSV, TSV, JSONL, parquet, arrow), COCO's captions_*.json, Karpathy's dataset_*.json,
    saved HF data sets, shards.

    Raises:
        InputError: a source that is not there, is of no known kind, or has no row; an option that none has a use for.
    """
    parts: list[Rows] = []
    for source in sources:
        try:
            parts += _open(source, options, on_progress)
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    rows = parts[0] if len(parts) == 1 else Chain(parts)
    origin = sources[0] if len(sources) == 1 else some_names(sources)
    if not len(rows):
        raise InputError(f"{origin}: no row in it; give a source that has some")
    if unused := [option for option in options.given() if option not in rows.uses]:
        raise InputError(f"{origin}: {unused[0]} has no meaning for such a source; leave it out")
    return rows


def splits_of(place: Path) -> list[str]:
    """The splits of what lies in a folder: of CIFAR, of tables and saved data sets, or folders of class folders.

    Raises:
        InputError: a saved data set that is no whole.
    """
    if not place.is_dir():
        return []
    if cifar_folder(place):
        return list(CIFAR_SPLITS)
    return [name for name in split_names(place) if name] or split_folders(place)


def _open(source: str, options: SourceOptions, on_progress: Callable[[int, int], None] | None) -> list[Rows]:
    if is_local(source):
        source = expand_home(source)
    path = Path(source)
    if is_shards(source):
        if options.splits:
            raise InputError(f"{source} has no splits; leave out --split")
        if options.index is not None:
            return [ShardRows(load_index([source], index_dir=expand_home(options.index)))]
        return [ShardRows(build_index([source], index_dir=None, on_progress=on_progress))]
    if path.is_dir():
        return _open_folder(path, options)
    if path.is_file():
        return [_open_file(path, options)]
    if path.exists():
        raise InputError(
            f"{source} is neither a file nor a folder; give pictures, a table, a saved data set, or shards"
        )
    if matches := sorted(glob.glob(_pattern(path))):
        return [part for match in matches for part in _open(match, options, on_progress)]
    raise InputError(f"{source}: no such file or folder; give pictures, a table, a saved data set, or shards")


def is_shards(source: str) -> bool:
    """Whether an address names shards; what no file system of this machine holds can be nothing else."""
    if not is_local(source):
        return True
    path = Path(expand_home(source))
    if path.is_dir():
        return any(path.glob("[!.]*.tar"))
    return source.endswith(".tar") or ("::" in source and not path.exists())  # fsspec's chain


def _pattern(path: Path) -> str:
    """The path with those characters escaped that belong to folders which are there: they are meant as they stand."""
    literal = next((parent for parent in path.parents if parent.exists()), Path())
    return os.path.join(glob.escape(str(literal)), path.relative_to(literal))


def _open_folder(folder: Path, options: SourceOptions) -> list[Rows]:
    if cifar := cifar_folder(folder):
        return [CifarRows(cifar, split=split) for split in chosen_splits(CIFAR_SPLITS, options.splits, folder)]
    if not split_names(folder):
        return open_pictures(folder, columns=options.columns, splits=options.splits, classes=options.class_folders)
    tables = tables_in(folder, options.splits)
    parts = [_open_file(table, options, is_split=True) for table in tables]
    return [
        ImagefolderRows(rows, table.parent) if table.name in METADATA and isinstance(rows, Table) else rows
        for table, rows in zip(tables, parts, strict=True)
    ]


def _open_file(path: Path, options: SourceOptions, *, is_split: bool = False) -> Rows:
    """The rows of a file; `is_split`: the splits that are wanted have been chosen."""
    image_folder = path.parent
    if options.image_folder is not None:
        image_folder = Path(expand_home(str(options.image_folder)))
        if not options.columns.needs_image and not image_folder.is_dir():  # all pictures would be absent
            raise InputError(f"{image_folder} is no folder; name the one from which the paths of {path} start")
    if not path.is_file():
        raise InputError(f"{path} is no file; the data set that names it is not whole")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _open_json(path, options, image_folder)
    if options.splits and not is_split:
        raise InputError(f"{path} has no splits; leave out --split")
    if suffix in _TEXTS:
        return CsvTable(path, columns=options.columns, image_folder=image_folder, format=options.text_format)
    if suffix in _TABLES:
        return _TABLES[suffix](path, columns=options.columns, image_folder=image_folder)
    known = ", ".join([*_TEXTS, *_TABLES, ".json", ".tar"])
    raise InputError(f"{path}: {suffix or 'a file without an extension'} is none of {known}; convert it to one of them")


def _open_json(path: Path, options: SourceOptions, image_folder: Path) -> Rows:
    """COCO's captions, Karpathy's splits, a list of objects, or an object per line."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if _begins_with_object(path):
            return JsonlTable(path, columns=options.columns, image_folder=image_folder)
        raise InputError(f"{path} is not JSON: {error}; for an object per line name it .jsonl") from error
    needs_captions = options.columns.needs_captions
    if KarpathyRows.fits(content):
        return KarpathyRows(
            path, content["images"], image_folder=image_folder, splits=options.splits, needs_captions=needs_captions
        )
    if options.splits:
        raise InputError(f"{path} has no splits; leave out --split")
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        return ListTable(path, content, columns=options.columns, image_folder=image_folder)
    return CocoRows(path, content, image_folder=image_folder, needs_captions=needs_captions)


def _begins_with_object(path: Path) -> bool:
    """Whether the first line is a JSON object by itself."""
    with open(path, "rb") as file:
        try:
            content: Any = json.loads(file.readline())
        except (ValueError, RecursionError):
            return False
    return isinstance(content, dict)
