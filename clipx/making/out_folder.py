"""The folder that shards are made in: whose it is, who works in it, and what in it may be replaced or removed.

    OUT/  00000.tar ...     the shards, and their index
          classnames.txt    of a source with labels: the class that each number in `cls` means, a line each
          make.json         what was asked for, and what became of it
          left_out.jsonl    rows that made no sample, and why
          .making/          while it lasts: the request, reports of the shards that are done, others, and a lock

Only a folder that was empty when it was begun is written to; the request, with a hash of the source, proves that it
was this command that began it. Only what stands here is ever removed. A shard lies in
`.making` until its report is there: what is in OUT without a report was written by somebody else.
"""

import filecmp
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from clipx.errors import InputError, RunError
from clipx.storage.files import write_file
from clipx.storage.locks import claim

MAKING = ".making"
MADE = "make.json"
REPORT = "left_out.jsonl"
_REQUEST, _LOCK = "request.json", "lock"
_OWN = re.compile(r"lock|\.?(request\.json|[0-9]+\.(json|tar))(\.[0-9a-f]{16})?")

log = logging.getLogger(__name__)


@contextmanager
def claimed(folder: Path, request: dict[str, object]) -> Iterator[dict[str, Any] | None]:
    """Keeps the folder for this process within the block; gives what became of an equal request if it is complete.

    Raises:
        InputError: the folder holds something else, was begun with another request or by a process that still works in
            it, or cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = _made(folder, request)
            if is_mine := made is None:
                stack.enter_context(claim(folder, folder / MAKING / _LOCK))
                made = _made(folder, request)  # by another process, while this one began
            if made is None:
                _write(folder / MAKING / _REQUEST, {"request": request})
        except OSError as error:
            raise InputError(
                f"--out {folder} cannot be used: {error.strerror or error}; choose another folder"
            ) from error
        yield made
        if is_mine:
            clear(folder)


def is_made(folder: Path) -> bool:
    """Whether a folder says that it is complete, whatever was asked for."""
    return (folder / MADE).exists()


def require_whole(folder: Path, num_shards: int) -> None:
    """Raises an InputError if shards of a folder that was complete are gone: nothing else would notice."""
    there = len(list(folder.glob("[!.]*.tar")))
    if there < num_shards:
        raise InputError(
            f"--out {folder} was complete, and {num_shards - there} of its {num_shards} shards are gone; "
            "put them back or choose a new folder"
        )


def finish(folder: Path, request: dict[str, object], made: dict[str, object]) -> None:
    """Writes what became of the request, which completes the folder."""
    _write(folder / MADE, {"request": request, "made": made}, indent=2)


def place(folder: Path, name: str) -> None:
    """Moves a shard that is done from `.making` to its place, if it is not there already.

    An equal shard may be there: processes that survive a killed parent finish what they began.

    Raises:
        RunError: something else is there.
    """
    made, target = folder / MAKING / name, folder / name
    with suppress(FileNotFoundError):  # it was moved before, or this moment by such a process
        if target.exists() and not filecmp.cmp(made, target, shallow=False):
            raise RunError(f"{target} was not made by this command; move it elsewhere and run the same command again")
        os.replace(made, target)


def forget(folder: Path) -> None:
    """Makes a folder free again that was begun for nothing, if no shard is done."""
    if not any((folder / MAKING).glob("[0-9]*.json")):
        clear(folder)


def clear(folder: Path) -> None:
    """Removes what only a second start would need."""
    for path in (folder / MAKING).iterdir():
        if _OWN.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):  # somebody put something into it
        (folder / MAKING).rmdir()


def _made(folder: Path, request: dict[str, object]) -> dict[str, Any] | None:
    """What became of an equal request if it is complete; None if it was begun, or the folder is free.

    Raises:
        InputError: the folder is of another request or of somebody else.
    """
    names = {path.name for path in folder.iterdir()}
    if MADE in names:
        content = _read(folder / MADE)
        _require_equal(content["request"], request, folder)
        made: dict[str, Any] = content["made"]
        return made
    making = {path.name for path in (folder / MAKING).iterdir()} if (folder / MAKING).is_dir() else set()
    if _REQUEST in making:
        _require_equal(_read(folder / MAKING / _REQUEST)["request"], request, folder)
    elif names - {MAKING} or making - {_LOCK}:
        raise InputError(f"--out {folder} holds something else; choose a new folder")
    return None


def _read(path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("request"), dict):
            return content
    raise InputError(f"{path} is not of clipx data make; choose a new folder for --out")


def _write(path: Path, content: dict[str, object], *, indent: int | None = None) -> None:
    write_file(str(path), json.dumps(content, indent=indent).encode())


def _require_equal(before: dict[str, object], now: dict[str, object], folder: Path) -> None:
    changed = [
        f"{key} was {before.get(key)}, now {now[key]}" for key in now if key != "source" and before.get(key) != now[key]
    ]
    if before.get("source") != now["source"]:
        changed.append("the source is another or has changed")
    if changed:
        raise InputError(
            f"--out {folder} was begun otherwise: {'; '.join(changed)}; restore that or choose a new folder"
        )
