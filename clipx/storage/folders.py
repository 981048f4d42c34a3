"""Folders of files, on a disk or at a URL of fsspec, with the few operations that checkpoints need.

The two differ in one thing: a disk renames a folder in one step, an object store knows only single files. Code that
needs a folder to appear whole checks `Folder.renames`.
"""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self, cast

from clipx.config.data import RemoteConfig
from clipx.storage.files import RangeReader, RemoteFile, file_state, is_local, read_file, write_file
from clipx.storage.remote import ask, resolved

REMOTE = RemoteConfig(timeout_s=180.0, retries=4)
"""New tries come 0.5, 1, 2 and 4 s after a failure; `_RemoteFolder.largest_file` bytes take 180 s at 0.75 MB/s."""
_PIECE = 64 << 20  # bytes of a file that are written to a disk between two syncs
_READ_AHEAD = 4 << 20  # bytes of a remote file, which hold many small tensors


@dataclass(frozen=True)
class Folder:
    """A folder on a disk that this machine mounts, whether it exists or not."""

    address: str
    """Path or URL, without a slash at the end."""

    renames: ClassVar[bool] = True
    """Whether `move` happens completely or not at all."""
    largest_file: ClassVar[int | None] = None
    """Largest size of one file in bytes, or None: in a store it is held in memory, and sent again after a failure."""

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return _last(self.address)

    @property
    def path(self) -> Path | None:
        """Path on a disk; None for a URL."""
        return self._path

    @property
    def _path(self) -> Path:
        return Path(self.address)

    def child(self, name: str) -> Self:
        """The folder of that name in this one."""
        return type(self)(f"{self.address}/{name}")

    def make(self) -> None:
        """Creates the folder if it does not exist; call it before files are written."""
        self._path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; empty if it does not exist."""
        with suppress(FileNotFoundError):
            return sorted(os.listdir(self._path))
        return []

    def sizes(self) -> dict[str, int]:
        """Sizes of the files in bytes by name; empty if the folder does not exist."""
        with suppress(FileNotFoundError), os.scandir(self._path) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        return {}

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading from any position; a pipe or a device, which may never end, is an OSError."""
        path = self._path / name
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is not a regular file")
        return path.open("rb")

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens a new file for writing; it is stored for good when the block ends without an error."""
        with io.BufferedWriter(_WrittenThrough(self._path / name, "wb")) as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, content: str) -> None:
        """Writes a small text file."""
        with self.create(name) as file:
            file.write(content.encode())

    def remove_file(self, name: str) -> None:
        """Removes a file if it exists."""
        (self._path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder with everything in it, if it exists."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._path)

    def move(self, name: str) -> Self:
        """Gives the folder another name, which must be free; returns the folder under that name."""
        _sync(self._path)
        target = self._path.rename(self._path.with_name(name))
        _sync(target.parent)
        return type(self)(str(target))


class _RemoteFolder(Folder):
    """A folder in a store that fsspec supports; every request is tried again as `REMOTE` says before it fails."""

    renames = False
    largest_file = 128 << 20

    @property
    def path(self) -> None:
        return None

    def make(self) -> None:
        """Does nothing: stores have files only."""

    def names(self) -> list[str]:
        return sorted(_last(entry["name"]) for entry in self._entries())

    def sizes(self) -> dict[str, int]:
        return {_last(entry["name"]): entry["size"] for entry in self._entries() if entry["type"] == "file"}

    def read(self, name: str) -> bytes:
        return read_file(f"{self.address}/{name}", remote=REMOTE)

    def open(self, name: str) -> BinaryIO:
        url = f"{self.address}/{name}"
        file = RemoteFile(url, file_state(url, remote=REMOTE).size, remote=REMOTE)
        return cast(BinaryIO, io.BufferedReader(_Ranges(file), _READ_AHEAD))

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        content = io.BytesIO()
        yield content
        write_file(f"{self.address}/{name}", content.getvalue(), remote=REMOTE)

    def remove_file(self, name: str) -> None:
        with suppress(FileNotFoundError):
            ask(f"{self.address}/{name}", "rm_file", remote=REMOTE)

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            ask(self.address, "rm", recursive=True, remote=REMOTE)

    def move(self, name: str) -> Self:
        """Copies, within the store, and removes: when it breaks off, both are there."""
        target = f"{self.address.removesuffix(self.name)}{name}"
        ask(self.address, "copy", target, recursive=True, remote=REMOTE)
        self.remove()
        return type(self)(target)

    def _entries(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):  # refresh: some file systems cache what they have listed
            entries = ask(self.address, "ls", detail=True, refresh=True, remote=REMOTE)
            # some stores list the folder itself as a file in it
            folder = resolved(self.address).partition("://")[2].strip("/")
            return [entry for entry in entries if entry["name"].strip("/") != folder]
        return []


def folder_at(address: Path | str) -> Folder:
    """The folder at a path or URL."""
    text = str(address).removeprefix("file://").rstrip("/")
    return Folder(text) if is_local(text) else _RemoteFolder(text)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file so that a reader, also after a crash, finds the old or the new content and no mixture."""
    aside = f".{path.name}.new"
    Folder(str(path.parent)).write(aside, text)
    path.with_name(aside).replace(path)


class _WrittenThrough(io.FileIO):
    """A file that is synced to the disk piece by piece and dropped from the page cache.

    Nobody reads a checkpoint soon. If it filled the cache, this would cost the kernel more time than the writing itself
    (benchmarks/LOG.md), take the place of the training's shards, and make the last sync a long wait.
    """

    _unsynced = 0

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self._unsynced += written
        if self._unsynced >= _PIECE:
            os.fsync(self.fileno())
            if hasattr(os, "posix_fadvise"):  # macOS has none
                os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsynced = 0
        return written


class _Ranges(io.RawIOBase):
    """A file that is read by range requests, behind the interface of Python's own files."""

    def __init__(self, file: RangeReader) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _last(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
