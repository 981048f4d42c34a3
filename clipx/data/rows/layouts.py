"""What lies in a folder: which of its files are the tables, and which of those belong to one split."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from clipx.errors import InputError, some_names

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of HF's imagefolder."""
_SPLIT_OF_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}[^/]*")  # the hub's names: train-00000-of-00002.parquet
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_PICTURE = re.compile(r".*\.(jpe?g|png|webp)", re.IGNORECASE)


def tables_in(folder: Path, splits: Sequence[str]) -> list[Path]:
    """The tables of a folder that describe its pictures or hold them; none if the pictures have files beside them.

    They are the arrow files of a data set that HF datasets saved, the metadata of an imagefolder, or parquet files: in
    the folder, in `data` as the hub has them, or in a folder for each split. Of several splits `splits` names those to
    take.

    Raises:
        InputError: several splits, and none is named; a split that is not there; a saved data set that is no whole.
    """
    if (folder / "dataset_dict.json").is_file():
        parts = {state.parent.name: state.parent for state in sorted(folder.glob("*/state.json"))}
        return [path for name in chosen_splits(parts, splits, folder) for path in _saved(parts[name])]
    by_split = _tables_by_split(folder)
    names = chosen_splits(by_split, splits, folder)
    return [table for name in names for table in by_split[name]]


def _tables_by_split(folder: Path) -> dict[str, list[Path]]:
    """The tables, those that belong to no split under ""."""
    if (folder / "state.json").is_file():
        return {"": _saved(folder)}
    if metadata := _first_file(folder, METADATA):
        return {"": [metadata]}
    if tables := _parquet_in(folder):
        return _by_split(tables)
    if _has_pictures(folder):
        return {}
    if tables := _parquet_in(folder / "data"):
        return _by_split(tables)
    found: dict[str, list[Path]] = {}
    for part in sorted(folder.glob("[!.]*/")):
        metadata = _first_file(part, METADATA)
        found[part.name] = [metadata] if metadata else _parquet_in(part)
        if not found[part.name]:
            return {}  # nor are the others splits
    return found


def _parquet_in(folder: Path) -> list[Path]:
    """The parquet files of a folder; none in img2dataset's `files`, where each repeats what lies in a folder beside."""
    tables = [path for path in sorted(folder.glob("[!.]*.parquet")) if path.is_file()]
    return [] if any((folder / table.stem).is_dir() for table in tables) else tables


def _by_split(tables: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for table in tables:
        shard = _SPLIT_OF_SHARD.fullmatch(table.stem)
        split = shard[1] if shard else table.stem if table.stem.lower() in _SPLITS else ""
        found.setdefault(split, []).append(table)
    return found


def split_names(folder: Path) -> list[str]:
    """The splits of the tables in a folder, "" for tables of none; empty if there is no table.

    Raises:
        InputError: a saved data set that is no whole.
    """
    if (folder / "dataset_dict.json").is_file():
        return [state.parent.name for state in sorted(folder.glob("*/state.json"))]
    return list(_tables_by_split(folder))


def is_split_name(name: str) -> bool:
    """Whether a folder or file with such a name holds one of several splits."""
    return name.lower() in _SPLITS


def chosen_splits(present: Collection[str], splits: Sequence[str], folder: Path) -> list[str]:
    """Those of the splits that are asked for; all, if there is one at most.

    Args:
        present: those that there are, "" for what belongs to none.
        splits: those to take.
        folder: what the message names.

    Raises:
        InputError: one is not there, or there are several and none is named.
    """
    known = [split for split in present if split]
    for split in splits:
        if split not in known:
            raise InputError(
                f"{folder} has no split {split!r}; " + (f"it has {some_names(known)}" if known else "leave out --split")
            )
    if not splits and len(present) > 1:
        names = some_names([split or "files without one" for split in present])
        raise InputError(f"{folder} holds several splits ({names}); name those to take with --split, or their files")
    return list(splits) or list(present)


def _saved(folder: Path) -> list[Path]:
    """The arrow files of a data set that HF datasets saved."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [folder / file["filename"] for file in state["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}/state.json is not as HF datasets' save_to_disk writes it: {error!r}") from error


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _has_pictures(folder: Path) -> bool:
    """Whether pictures lie in the folder itself."""
    return any(_PICTURE.fullmatch(path.name) for path in folder.iterdir())
