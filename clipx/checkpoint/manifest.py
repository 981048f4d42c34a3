"""`manifest.json`: size and SHA-256 of every other file of a checkpoint, and the comparison of the two.

A sum is that of the bytes as they were handed to the disk, by the rank that wrote them: nothing is read for it.
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
_BLOCK = 16 << 20
_CACHED = 1 << 20  # bytes that are still in the processor's cache when they are written after they were summed up


class Entry(TypedDict):
    """What is known of a file."""

    size: int
    sha256: str


class Recorder(io.RawIOBase):
    """A file for writing, from the front on, that keeps the sum of what passes.

    What the disk refuses comes out of `entry`: torch.save, told of it, would still close its archive, and that fails
    with a message about positions, which is all that its caller sees.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._size = 0
        self._error: OSError | None = None

    def writable(self) -> bool:
        """As of every such file."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._size

    def write(self, data: Any, /) -> int:
        """Takes all of `data`."""
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
        """Size and sum of what has passed.

        Raises:
            OSError: not all of it could be written.
        """
        if self._error is not None:
            raise self._error
        return Entry(size=self._size, sha256=self._sum.hexdigest())


@contextmanager
def recorded(folder: Folder, name: str, entries: dict[str, Entry]) -> Iterator[Recorder]:
    """A new file of a folder; its entry is added to `entries` once it is stored."""
    with folder.create(name) as file:
        recorder = Recorder(file)
        yield recorder
        entry = recorder.entry()
    entries[name] = entry


def write_manifest(folder: Folder, entries: Mapping[str, Entry]) -> None:
    """The last file of a checkpoint."""
    folder.write(MANIFEST, json.dumps({name: entries[name] for name in sorted(entries)}, indent=2))


def misfit(folder: Folder) -> str | None:
    """What is wrong at first sight, or None: every file of the manifest is there and has its size.

    Raises:
        OSError: the storage did not answer, which says nothing about the checkpoint.
    """
    manifest = _read(folder)
    return manifest if isinstance(manifest, str) else _misfit(folder, manifest)


def problem(folder: Folder) -> str | None:
    """What is wrong, or None: every file of the manifest is there and has its size and SHA-256.

    Reads all of it, several files at a time.

    Raises:
        OSError: as `misfit`.
    """
    manifest = _read(folder)
    if isinstance(manifest, str):
        return manifest
    if (found := _misfit(folder, manifest)) is not None:
        return found
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        sums = pool.map(partial(_sha256, folder), manifest)
        for (name, entry), found in zip(manifest.items(), sums, strict=True):
            if found != entry["sha256"]:
                return f"{name} differs from its checksum"
    return None


def _read(folder: Folder) -> dict[str, Entry] | str:
    """The manifest, or what is wrong with it."""
    try:
        content = json.loads(folder.read(MANIFEST))
        return {name: Entry(size=entry["size"], sha256=entry["sha256"]) for name, entry in content.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"


def _misfit(folder: Folder, manifest: Mapping[str, Entry]) -> str | None:
    sizes = folder.sizes()
    for name, entry in manifest.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != entry["size"]:
            return f"{name} has {sizes[name]} bytes instead of {entry['size']}"
    return None


def _sha256(folder: Folder, name: str) -> str:
    total = hashlib.sha256()
    with folder.open(name) as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
