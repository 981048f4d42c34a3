"""`manifest.json`: size and SHA-256 of every other file of a checkpoint, and the check of the files against it.

A checksum is that of the bytes as the rank that wrote them handed them to the disk: nothing is read to compute it.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, TypedDict

from clipx.storage.folders import Folder

MANIFEST = "manifest.json"
_THREADS = 16
_CACHED = 1 << 20  # bytes that are still in the processor's cache when they are written after their checksum


class Entry(TypedDict):
    """What the manifest records of one file."""

    size: int
    sha256: str


class Recorder(io.RawIOBase):
    """A file that is written from start to end, and the size and checksum of what is written.

    A failing disk raises in `entry` and not in `write`: torch.save would close its archive after an error in `write`,
    and this fails with a message about positions that would hide the error.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None

    def writable(self) -> bool:
        """Always True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: Any, /) -> int:
        """Writes all of `data`."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        try:
            for start in range(0, len(view) if self._error is None else 0, _CACHED):
                block = view[start : start + _CACHED]
                self._sum.update(block)
                self._file.write(block)
        except OSError as error:
            self._error = error
        return len(view)

    def entry(self) -> Entry:
        """Size and checksum of what was written.

        Raises:
            OSError: not all of it could be written.
        """
        if self._error is not None:
            raise self._error
        return Entry(size=self._size, sha256=self._sum.hexdigest())


@contextmanager
def recorded(folder: Folder, name: str, entries: dict[str, Entry]) -> Iterator[Recorder]:
    """Opens a new file of a folder for writing; adds its entry to `entries` once it is stored."""
    with folder.create(name) as file:
        recorder = Recorder(file)
        yield recorder
        entry = recorder.entry()
    entries[name] = entry


def write_manifest(folder: Folder, entries: Mapping[str, Entry]) -> None:
    """Writes the manifest, which is the last file of a checkpoint."""
    folder.write(MANIFEST, json.dumps({name: entries[name] for name in sorted(entries)}, indent=2))


def read_manifest(folder: Folder) -> dict[str, Entry]:
    """The entries of the other files by name.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is damaged, or another program's.
        OSError: the storage did not answer.
    """
    try:
        content = json.loads(folder.read(MANIFEST))
        return {name: Entry(size=entry["size"], sha256=entry["sha256"]) for name, entry in content.items()}
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} has another form") from error


def find_problem(folder: Folder, *, checksums: bool) -> str | None:
    """The first thing that is wrong with a checkpoint, or None: a file is missing or of another size.

    With `checksums` also one of another SHA-256, for which all files are read, several at a time.

    Raises:
        OSError: the storage did not answer, which says nothing about the checkpoint.
    """
    try:
        entries = read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} is damaged"
    sizes = folder.sizes()
    for name, entry in entries.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != entry["size"]:
            return f"{name} has {sizes[name]} bytes instead of {entry['size']}"
    return _find_wrong_checksum(folder, entries) if checksums else None


def _find_wrong_checksum(folder: Folder, entries: Mapping[str, Entry]) -> str | None:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        sums = pool.map(partial(_sha256, folder), entries)
        for (name, entry), actual in zip(entries.items(), sums, strict=True):
            if actual != entry["sha256"]:
                return f"{name} differs from its checksum"
    return None


def _sha256(folder: Folder, name: str) -> str:
    with folder.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO lacks readinto
