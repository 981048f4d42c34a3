"""Where a shard's bytes come from: local files by `pread`, any other address through fsspec.

The index, the sidecars and the reader know shards only through this module. Local addresses are plain paths; everything
with `://` in it goes to fsspec, one range request per read.
"""

import os
from typing import Any, NamedTuple, Protocol

import fsspec


class FileState(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change in nanoseconds; 0 where the store knows none."""


class RangeReader(Protocol):
    """An open file that reads byte ranges, from any thread, without a position."""

    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; fewer only at the end of the file."""

    def close(self) -> None:
        """Gives the descriptor or connection back."""


def is_local(path: str) -> bool:
    """Whether `path` is opened by the operating system rather than by fsspec."""
    return "://" not in path


def file_state(path: str) -> FileState:
    """Size and time of `path`.

    Raises:
        OSError: when it is not there or cannot be asked.
    """
    if is_local(path):
        status = os.stat(path)
        return FileState(status.st_size, status.st_mtime_ns)
    filesystem, inner = fsspec.core.url_to_fs(path)
    size = int(filesystem.size(inner))
    try:
        return FileState(size, int(filesystem.modified(inner).timestamp() * 1e9))
    except NotImplementedError:
        return FileState(size, 0)


def open_ranges(path: str, *, sequential: bool = False) -> RangeReader:
    """Opens `path` for reading by ranges.

    Args:
        path: local path or fsspec address.
        sequential: reads will go from the front to the end (a scan), so fetching ahead saves requests.

    Raises:
        OSError: when it cannot be opened.
    """
    return _LocalFile(path) if is_local(path) else _RemoteFile(path, sequential=sequential)


class _LocalFile:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length and (more := os.pread(self._descriptor, length - len(data), offset + len(data))):
            data += more  # Linux returns at most 2 GiB at once, and network file systems may return less
        return data

    def close(self) -> None:
        os.close(self._descriptor)


class _RemoteFile:
    def __init__(self, path: str, *, sequential: bool) -> None:
        filesystem, inner = fsspec.core.url_to_fs(path)
        self.size = int(filesystem.size(inner))
        self._file: Any = filesystem.open(inner, "rb", cache_type="readahead" if sequential else "none")

    def read_at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data: bytes = self._file.read(length)
        return data

    def close(self) -> None:
        self._file.close()
