"""The folder of an export: which files in it are an export's own, and how a new one takes its place.

parity.json is the mark: it holds the SHA-256 of every other file of the export, and one of itself. What it does not
name, or what has changed since, is somebody's, and is never removed or replaced.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipx.errors import InputError

PARITY = "parity.json"
_SUFFIXES = {".json", ".safetensors", ".txt", ".yaml", ".jinja"}  # of all that an export writes, whatever a list says
_UNFINISHED = ".clipx-export"  # marks a folder whose export is under way, or was broken off
_MAX_NAMED = 10


def require_own(folder: Path) -> None:
    """Checks that a folder, if there is one, holds nothing but what an export wrote, as it wrote it.

    Raises:
        InputError: it is a file, or holds other files or changed ones; at most ten of each are named.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the export")
    recorded = _recorded(folder)
    names = sorted(os.listdir(folder))
    unknown = [name for name in names if name not in recorded and not (recorded and name == PARITY)]
    changed = [name for name in names if name in recorded and _sha256(folder / name) != recorded[name]]
    faults = [f"{_some(unknown)}, which no export wrote"] if unknown else []
    faults += [f"{_some(changed)}, changed since the export"] if changed else []
    if faults:
        hint = " (parity.json was edited, or is of an older clipx)" if PARITY in unknown else ""
        raise InputError(f"{folder} holds {' and '.join(faults)}{hint}; move that away or name another folder")


@contextmanager
def draft_of(to: Path) -> Iterator[Path]:
    """An empty folder beside `to`, in which this process alone writes; removed at the end unless it was published.

    Raises:
        InputError: another export into `to` is under way, or something else has the folder's name.
        OSError: it cannot be made.
    """
    draft = to.with_name(f".{to.name}.exporting")
    draft.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _lock(descriptor) or not _is_at(descriptor, draft):
            raise InputError(f"another export into {to} is under way; wait for it, or name another folder")
        if (names := os.listdir(draft)) and _UNFINISHED not in names:
            raise InputError(f"{draft} is in the way, and no export made it; move it away or name another folder")
        for name in names:  # of an export that was broken off
            path = draft / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (draft / _UNFINISHED).touch()
        try:
            yield draft
        finally:
            if _is_at(descriptor, draft):
                shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(descriptor)


def publish(draft: Path, to: Path, parity: dict[str, Any]) -> None:
    """Marks the draft and renames it to `to`, in place of an export that is there.

    If the process dies between the renames, the export that was there is in `.NAME.old`.

    Raises:
        InputError: what is at `to`, or at `.NAME.old`, is not an export's alone; both stay as they are.
        OSError: it cannot be renamed.
    """
    (draft / _UNFINISHED).unlink()
    parity["files"] = {name: _sha256(draft / name) for name in sorted(os.listdir(draft))}
    parity["mark"] = _mark(parity)
    (draft / PARITY).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
    old = to.with_name(f".{to.name}.old")
    require_own(old)
    require_own(to)  # a file may have come while the export was compared
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


def _recorded(folder: Path) -> Mapping[str, str]:
    """Checksums of an export's files by name; empty without a mark that fits."""
    try:
        parity = json.loads((folder / PARITY).read_bytes())
        mark, files = parity.pop("mark"), parity["files"]
        if mark != _mark(parity):
            return {}
        return {name: str(checksum) for name, checksum in files.items() if Path(name).suffix in _SUFFIXES}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _mark(parity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parity, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """The checksum of a regular file; "" for anything else."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(descriptor: int) -> bool:
    """Takes a lock that ends with this process; False if another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: two exports at once are on their own there
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
