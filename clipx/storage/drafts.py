"""Folders that appear whole: written under another name by one process alone, and renamed when they are complete.

A mark in an unfinished folder proves that clipx made it. What a killed process left is taken over; what has no mark is
somebody's, and stays.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipx.errors import InputError
from clipx.storage.locks import is_at, try_lock

_MARK = ".clipx-unfinished"
_SUFFIX = ".unfinished"


@contextmanager
def draft_of(to: Path) -> Iterator[Path]:
    """An empty folder beside `to`, in which this process alone writes; removed at the end unless it was renamed.

    Raises:
        InputError: another process writes `to`, or something else has the draft's name.
        OSError: it cannot be made.
    """
    draft = to.with_name(f".{to.name}{_SUFFIX}")
    draft.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _lock(descriptor) or not is_at(descriptor, draft):
            raise InputError(f"another process writes {to}; wait for it, or name another folder")
        if (names := os.listdir(draft)) and _MARK not in names:
            raise InputError(f"{draft} is in the way, and clipx did not make it; move it away")
        for name in names:  # of a process that was killed
            path = draft / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (draft / _MARK).touch()
        try:
            yield draft
        finally:
            if is_at(descriptor, draft):
                shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(descriptor)


def becomes(folder: Path) -> Path:
    """The name that a draft will have; any other folder's own."""
    if (folder / _MARK).exists():
        return folder.with_name(folder.name.removeprefix(".").removesuffix(_SUFFIX))
    return folder


def finish(draft: Path) -> None:
    """Takes the mark away; the folder is complete, and is to be renamed."""
    (draft / _MARK).unlink()


def _lock(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError:  # a file system without locks: two at once are on their own there
        return True
