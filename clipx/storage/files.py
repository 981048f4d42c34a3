"""Where bytes come from: local files by `pread`, any other address through fsspec or a command.

The index and the reader know files only through this module. An address with `://` in it goes to fsspec,
one range request per read (`remote.py`); `pipe:COMMAND` (webdataset's notation) is what a command writes to its
standard output. Neither a command nor some web servers can give a part: such a shard is fetched whole into a local file
(`shard_cache.py`) and read from there.
"""

import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from clipx.config.data import RemoteConfig
from clipx.printable import redact
from clipx.storage import remote as remote_files
from clipx.storage.failures import UnusableAddressError
from clipx.storage.remote import DEFAULTS, PIPE, RemoteState

if TYPE_CHECKING:  # needed only for what is fetched whole
    from clipx.storage.shard_cache import ShardCache

_SCAN_BLOCK = 4 << 20  # of a scan over a network: at 50 ms and 80 MB/s half of the time is waiting, half is reading

log = logging.getLogger(__name__)
_without_ranges: set[str] = set()  # hosts that were named in the log


class FileState(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change in nanoseconds; 0 if the store knows none."""


class RangeReader(Protocol):
    """An open file that reads byte ranges, from any thread, without a position."""

    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; fewer only at the end of the file."""

    def close(self) -> None:
        """Gives the descriptor back."""


def is_local(path: str) -> bool:
    """Whether `path` is opened by the operating system rather than fetched."""
    return "://" not in path and not path.startswith(PIPE)


def file_state(path: str, *, remote: RemoteConfig = DEFAULTS) -> FileState:
    """Size and time of `path`; what has no size before it is read is fetched for it.

    Raises:
        OSError: it is not there or cannot be asked.
    """
    if is_local(path):
        status = os.stat(path)
        return FileState(status.st_size, status.st_mtime_ns)
    size, mtime_ns = None, 0
    if not path.startswith(PIPE):
        size, mtime_ns, _ = remote_files.state(path, remote)
    return FileState(_fetch_whole(path, None, remote=remote, cache=None).size if size is None else size, mtime_ns)


def open_ranges(
    path: str,
    *,
    sequential: bool = False,
    state: FileState | None = None,
    remote: RemoteConfig = DEFAULTS,
    cache: "ShardCache | None" = None,
) -> RangeReader:
    """Opens a local path or an address for reading by ranges.

    Args:
        sequential: reads will go from the front to the end (a scan): fetching ahead saves requests.
        state: of the file as it should be, if it is known; saves a request if the cache holds it.
        cache: keeps remote files whole; None fetches only what is read, if the store can give that.

    Raises:
        OSError: it cannot be opened.
    """
    if is_local(path):
        return LocalFile(open_regular(path))
    if path.startswith(PIPE):
        return _fetch_whole(path, None, remote=remote, cache=cache)
    if cache is not None:
        from clipx.storage.shard_cache import Identity

        shard = Identity(path, *(state or file_state(path, remote=remote)))
        descriptor = cache.open(shard, lambda write: remote_files.download(path, write, remote))
        if descriptor is not None:
            return LocalFile(descriptor)
    now = remote_files.state(path, remote)
    if now.size is None or not now.ranges:
        return _fetch_whole(path, now, remote=remote, cache=cache)
    return RemoteFile(path, now.size, remote=remote, read_ahead=_SCAN_BLOCK if sequential else 0)


def open_regular(path: str | Path) -> int:
    """A descriptor of a file; what is none is not waited for.

    Raises:
        OSError: it cannot be opened, or is a folder, a fifo, a device, a socket.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo without a writer would wait
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise UnusableAddressError(errno.EINVAL, f"it is {kind_of_file(mode)}, not a file", str(path))


def kind_of_file(mode: int) -> str:
    """What a file that is none is called, by its mode."""
    kinds = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _fetch_whole(
    path: str, state: RemoteState | None, *, remote: RemoteConfig, cache: "ShardCache | None"
) -> "LocalFile":
    """A local copy of what cannot be read by ranges."""
    from clipx.storage.shard_cache import Identity, ShardCache

    cache = cache or ShardCache.default()
    origin = PIPE if path.startswith(PIPE) else "/".join(path.split("/")[:3])
    if origin not in _without_ranges:
        _without_ranges.add(origin)
        text = "%s gives no parts of files: each shard is fetched whole, to %s, before it is read"
        log.warning(text, redact(origin), cache.folder)
    identity = Identity(path, None, 0) if state is None else Identity(path, state.size, state.mtime_ns)
    descriptor = cache.open(identity, lambda write: remote_files.download(path, write, remote), required=True)
    assert descriptor is not None
    return LocalFile(descriptor)


def read_file(path: str, *, remote: RemoteConfig = DEFAULTS) -> bytes:
    """The content of a small file.

    Raises:
        OSError: it cannot be read.
    """
    if not is_local(path):
        return remote_files.read_whole(path, remote)
    with open(open_regular(path), "rb") as file:
        return file.read()


def write_file(path: str, content: bytes, *, remote: RemoteConfig = DEFAULTS) -> None:
    """Replaces a file so that a reader sees the old content or the new one, never a part.

    Raises:
        OSError: it cannot be written.
    """
    if not is_local(path):
        remote_files.write_whole(path, content, remote)
        return
    with _beside(Path(path), content) as temporary:
        os.replace(temporary, path)


def write_new_file(path: str, content: bytes, *, remote: RemoteConfig = DEFAULTS) -> bool:
    """Writes a file that is not there, whole or not at all; False, and nothing is written, if it is there.

    Of several processes that do so at once one succeeds; in a store the last does.

    Raises:
        OSError: it cannot be written.
    """
    if not is_local(path):
        write_file(path, content, remote=remote)
        return True
    with _beside(Path(path), content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if os.path.lexists(path):
                return False
            os.replace(temporary, path)
        return True


@contextmanager
def _beside(target: Path, content: bytes) -> Iterator[Path]:
    """A new file beside `target`, which is removed at the end if it still is there; makes the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


class LocalFile:
    """An open descriptor, which this object owns and closes with the last reference at the latest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """See `RangeReader`."""
        if offset + length > self.size:  # or a size from a broken header would take the memory
            length = max(self.size - offset, 0)
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length and (more := os.pread(self._descriptor, length - len(data), offset + len(data))):
            data += more  # Linux returns at most 2 GiB at once, and network file systems may return less
        return data

    def mark_used(self) -> None:
        """Tells the cache of which this is a shard that it is in use."""
        from clipx.storage.shard_cache import mark_used

        mark_used(self._descriptor)

    def close(self) -> None:
        """See `RangeReader`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class RemoteFile:
    """A file of `size` bytes, else reads fail, that is read by range requests; holds nothing open.

    A request asks for at least `read_ahead` bytes; the next reads are served from them, in one thread only.
    """

    def __init__(self, url: str, size: int, *, remote: RemoteConfig = DEFAULTS, read_ahead: int = 0) -> None:
        self._url, self._remote, self._read_ahead = url, remote, read_ahead
        self.size = size
        self._start, self._block = 0, b""

    def read_at(self, offset: int, length: int) -> bytes:
        """See `RangeReader`; makes one request at most."""
        if not self._read_ahead:
            return self._request(offset, length)
        if offset < self._start or min(offset + length, self.size) > self._start + len(self._block):
            self._start, self._block = offset, self._request(offset, max(length, self._read_ahead))
        return self._block[offset - self._start :][:length]

    def _request(self, offset: int, length: int) -> bytes:
        return remote_files.read_range(self._url, offset, offset + length, size=self.size, remote=self._remote)

    def close(self) -> None:
        """Nothing is open."""
