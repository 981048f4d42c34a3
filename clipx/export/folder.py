"""The folder of an export or an average: which files in it are its own, and how a new one takes its place.

Its record (parity.json, average.json) is the mark: it holds the SHA-256 of every other file, and one of itself. What it
does not name, or what has changed since, is somebody's, and is never removed or replaced.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.errors import InputError, some_names
from clipx.storage.drafts import finish

PARITY = "parity.json"
# of all that an export writes, whatever a list says; README.md is the model card
_SUFFIXES = {".json", ".safetensors", ".txt", ".yaml", ".jinja", ".onnx", ".onnx_data", ".data", ".pt2"}
_CARD = "README.md"


@dataclass(frozen=True)
class Record:
    """The file that marks a folder as written by clipx, with the checksums of all others in it."""

    name: str
    by: str
    """What writes such folders, in one word."""


EXPORT = Record(PARITY, by="export")
AVERAGE = Record("average.json", by="average")


def require_own(folder: Path, record: Record = EXPORT) -> None:
    """Checks that a folder, if there is one, holds nothing but what an export (an average) wrote, as it wrote it.

    Raises:
        InputError: it is a file, or holds other files or changed ones; at most ten of each are named.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the {record.by}")
    recorded = _recorded(folder, record)
    names = _names(folder, within=recorded)
    unknown = [name for name in names if name not in recorded and not (recorded and name == record.name)]
    changed = [name for name in names if name in recorded and _sha256(folder / name) != recorded[name]]
    faults = [f"{some_names(unknown)}, which no {record.by} wrote"] if unknown else []
    faults += [f"{some_names(changed)}, changed since the {record.by}"] if changed else []
    if faults:
        hint = f" ({record.name} was edited, or is of an older clipx)" if record.name in unknown else ""
        raise InputError(f"{folder} holds {' and '.join(faults)}{hint}; move that away or name another folder")


def exported_files(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of parity.json and the paths of all files of an export, sorted; what else lies there is left out.

    Raises:
        InputError: no export is there, or a file of it is gone or changed. The card may have been edited: it is a text
            for people, and lacks what only they know.
    """
    recorded = _recorded(folder, EXPORT)
    if not recorded:
        raise InputError(
            f"{folder} is no export: it has no parity.json that holds (it is missing, or was edited); write one with "
            "`clipx export`"
        )
    found = {name: _sha256(folder / name) for name in sorted(recorded)}
    gone = [name for name, checksum in found.items() if not checksum]
    changed = [name for name, checksum in found.items() if checksum not in ("", recorded[name]) and name != _CARD]
    faults = [f"without {some_names(gone)}"] if gone else []
    faults += [f"with {some_names(changed)} changed since"] if changed else []
    if faults:
        raise InputError(f"{folder} is an export {' and '.join(faults)}: what was compared is not there; export again")
    return json.loads((folder / PARITY).read_bytes()), sorted([*recorded, PARITY])


def with_replaced(parity: Mapping[str, Any], replaced: Mapping[str, bytes]) -> bytes:
    """parity.json of an export in which these files have another content."""
    content = {name: value for name, value in parity.items() if name != "mark"}
    content["files"] = content["files"] | {name: hashlib.sha256(data).hexdigest() for name, data in replaced.items()}
    return (json.dumps(content | {"mark": _mark(content)}, indent=2) + "\n").encode()


def publish(draft: Path, to: Path, content: dict[str, Any], record: Record = EXPORT) -> None:
    """Marks the draft by its record, with this content, and renames it to `to`, in place of an earlier one of its kind.

    If the process dies between the renames, the one that was there is in `.NAME.old`.

    Raises:
        InputError: what is at `to`, or at `.NAME.old`, is not such a folder alone; both stay as they are.
        OSError: it cannot be renamed.
    """
    finish(draft)
    content["files"] = {name: _sha256(draft / name) for name in _names(draft)}
    content["mark"] = _mark(content)
    (draft / record.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in content["files"]:  # safetensors 0.8 leaves files that nobody else may read
        (draft / name).chmod((draft / record.name).stat().st_mode)
    old = to.with_name(f".{to.name}.old")
    require_own(old, record)
    require_own(to, record)  # a file may have come meanwhile
    if old.exists():
        shutil.rmtree(old)
    if to.exists():
        os.rename(to, old)
    try:
        os.rename(draft, to)
    except OSError:
        if old.exists() and not to.exists():
            os.rename(old, to)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _names(folder: Path, *, within: Collection[str] | None = None, prefix: str = "") -> list[str]:
    """The paths, from the folder, of its files and those of its subfolders, sorted; an empty folder's, too.

    With `within`, a subfolder that has none of these paths is named itself and not read: it may be anybody's.
    """
    names: list[str] = []
    for entry in os.scandir(folder):
        path = f"{prefix}{entry.name}"
        inside: list[str] = []
        wanted = within is None or any(name.startswith(f"{path}/") for name in within)
        if wanted and entry.is_dir(follow_symlinks=False):
            inside = _names(Path(entry.path), within=within, prefix=f"{path}/")
        names += inside or [path]
    return sorted(names)


def _recorded(folder: Path, record: Record) -> Mapping[str, str]:
    """Checksums of the files by name; empty without a mark that fits."""
    if not (folder / record.name).is_file():
        return {}
    try:
        content = json.loads((folder / record.name).read_bytes())
        mark, files = content.pop("mark"), content["files"]
        if mark != _mark(content):
            return {}
        return {
            name: str(checksum)
            for name, checksum in files.items()
            if (Path(name).suffix in _SUFFIXES or name == _CARD) and _is_inside(name)
        }
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _mark(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def readable_errors(to: Path) -> Iterator[None]:
    """Turns errors of the disk within the block into one line for a person.

    Raises:
        InputError: `to` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror or error}; check path, rights and space") from error


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _sha256(path: Path) -> str:
    """The checksum of a regular file; "" for anything else."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
