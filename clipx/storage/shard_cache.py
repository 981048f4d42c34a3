"""Whole remote shards on a local disk, bounded, for all processes of a machine.

A file's name holds a hash of the shard's address, size and time, so a shard that changes is another file. It is written
under a temporary name, `.part`, on which the writer holds a `flock`, and renamed when it is complete: each shard is
fetched once, by whichever process comes first, while the others wait; a lock dies with its process, and what a crash
leaves is only a `.part` that nobody holds, which the next writer starts anew. The shards used longest ago (file time)
make room, under the folder's lock. A file that is open stays readable after its removal.
"""

import errno
import fcntl
import hashlib
import logging
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from clipx.config.paths import CACHE_VARIABLE, cache_folder
from clipx.errors import InputError
from clipx.printable import redact, unsigned
from clipx.storage.locks import is_at, try_lock

DEFAULT_MAX_BYTES = 100 * 10**9
_PART = ".part"
_OWN_NAME = re.compile(r"[0-9a-f]{32}-[A-Za-z0-9._-]{0,60}(\.part)?\Z")  # what `Identity.file_name` gives
_LOCK = ".lock"
_IN_USE_S = 300.0  # opened or asked for so recently: a cache that is too small must not throw out what it needs next
_POLL_S = 0.05

Write = Callable[[bytes, int], None]

log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """What a cached shard must be."""

    url: str
    size: int | None
    """Bytes; None if nobody knows before it is fetched."""
    mtime_ns: int

    @property
    def file_name(self) -> str:
        """A name that no other shard has, with the shard's own at its end."""
        shard = self._replace(url=unsigned(self.url))  # its next signature finds it here
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", posixpath.basename(redact(shard.url)))[-60:]
        return f"{hashlib.sha256(repr(tuple(shard)).encode()).hexdigest()[:32]}-{readable}"


class _NoRoomError(Exception):
    """The cache cannot take the shard: a word for the kind of reason, and the reason."""


class ShardCache:
    """Opens shards from a local folder of at most `max_bytes`, fetching those that are absent.

    The folder is made if it is absent. Another process that fetches a shard may stand still for `stall_s`. `moved_by`
    names, for a message, what a person sets to have another folder.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        stall_s: float = 600.0,
        moved_by: str = "data.cache.folder",
    ) -> None:
        self.folder = Path(folder)
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._logged: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _LOCK).open("ab").close()
        except OSError as error:
            raise InputError(
                f"cache folder {str(self.folder)!r} cannot be written: {error.strerror}; give another {moved_by}"
            ) from error

    @classmethod
    def default(cls) -> "ShardCache":
        """The one for sources that can only be fetched whole: `$CLIPX_CACHE/shards`."""
        return cls(cache_folder() / "shards", moved_by=f"folder in the variable {CACHE_VARIABLE}")

    def open(self, shard: Identity, fetch: Callable[[Write], None], *, required: bool = False) -> int | None:
        """A descriptor of the shard's local copy, now the caller's; None if there is no room, which is logged once.

        Args:
            fetch: writes all of it as (bytes, offset); called when no process has done so.
            required: there is no other way to read the shard: shards in use make room too, and no room is an error.

        Raises:
            OSError: from `fetch`, or the cache's disk; without room only if `required`.
        """
        path = self.folder / shard.file_name
        while True:
            if (descriptor := _open_complete(path, shard.size)) is not None:
                return descriptor
            part = self._lock_part(path)
            if part is None:  # another process was faster
                continue
            try:
                self._fill(part, path, shard, fetch, required=required)
                return part
            except _NoRoomError as error:
                os.close(part)
                kind, reason = error.args
                if required:
                    raise OSError(errno.ENOSPC, f"{reason}; make room there or set another data.cache") from None
                if kind not in self._logged:
                    self._logged.add(kind)
                    log.warning("%s; such shards are read by ranges, without the cache", reason)
                return None
            except BaseException:
                os.close(part)
                raise

    def _fill(self, part: int, path: Path, shard: Identity, fetch: Callable[[Write], None], *, required: bool) -> None:
        """Fetches into the locked part, gives it its name and unlocks it."""
        written = 0

        def write(data: bytes, offset: int) -> None:
            nonlocal written
            view = memoryview(data)
            while view:
                count = os.pwrite(part, view, offset)
                view, offset = view[count:], offset + count
            written = offset

        temporary = _part_of(path)
        try:
            os.ftruncate(part, 0)
            if shard.size is not None:
                self._reserve(part, temporary, shard.size, required=required)
            fetch(write)
            if shard.size is None:
                self._reserve(part, temporary, written, required=required)
            elif written != shard.size:
                raise OSError(f"{written} instead of {shard.size} bytes came")
            os.fsync(part)  # after a power failure the name must not stand for an empty file
            with self._locked_folder():  # one who makes room counts it under one of its names
                os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise _NoRoomError("disk", f"the disk of the cache {self.folder} is full") from error
            raise
        fcntl.flock(part, fcntl.LOCK_UN)  # others wait for it, and this descriptor stays open

    def _lock_part(self, path: Path) -> int | None:
        """The locked part of `path`; None when a process that held it has completed or given it up."""
        temporary = _part_of(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._wait_for_lock(descriptor, path)
            if not path.exists() and is_at(descriptor, temporary):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _wait_for_lock(self, descriptor: int, path: Path) -> None:
        """Takes the lock; its holder may take its time as long as it goes on writing."""
        seen, stalls_at = 0, time.monotonic() + self._stall_s
        while not try_lock(descriptor):
            if (changed := os.fstat(descriptor).st_mtime_ns) != seen:
                seen, stalls_at = changed, time.monotonic() + self._stall_s
            if time.monotonic() > stalls_at:
                raise TimeoutError(f"another process holds {path}{_PART} and has not written for {self._stall_s:g} s")
            time.sleep(_POLL_S)

    def _reserve(self, part: int, temporary: Path, size: int, *, required: bool) -> None:
        """Makes room for `size` bytes, and takes it by giving the part that size."""
        if size > self._max_bytes:
            raise _NoRoomError("size", f"a shard of {size} bytes is larger than the cache ({self._max_bytes} bytes)")
        with self._locked_folder():
            others = [file for file in self._files() if file.path != temporary]
            excess = sum(file.size for file in others) + size - self._max_bytes
            newest = time.time() - (0 if required else _IN_USE_S)
            complete = (file for file in others if not file.path.name.endswith(_PART))
            for file in sorted(complete, key=lambda file: file.used):
                if excess <= 0 or file.used > newest:
                    break
                file.path.unlink(missing_ok=True)
                excess -= file.size
            if excess > 0:
                too_small = f"the cache {self.folder} ({self._max_bytes} bytes) is too small for the shards in use"
                raise _NoRoomError("use", too_small)
            os.ftruncate(part, size)

    def _files(self) -> "list[_File]":
        """The cache's own files; parts whose process died are removed. What else lies there stays."""
        files = []
        for entry in os.scandir(self.folder):
            try:
                if not _OWN_NAME.match(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                if entry.name.endswith(_PART) and _remove_if_abandoned(entry.path):
                    continue
                status = entry.stat()
            except (FileNotFoundError, PermissionError):  # gone meanwhile, or another user's part
                continue
            files.append(_File(Path(entry.path), status.st_size, status.st_mtime))
        return files

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        with open(self.folder / _LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _File(NamedTuple):
    path: Path
    size: int
    used: float


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _open_complete(path: Path, size: int | None) -> int | None:
    """A descriptor of a complete file, marked as used now; None if there is none of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if size in (None, os.fstat(descriptor).st_size):
        mark_used(descriptor)
        return descriptor
    os.close(descriptor)
    path.unlink(missing_ok=True)
    return None


def mark_used(descriptor: int) -> None:
    """Makes an open shard the last to be removed."""
    with suppress(PermissionError):  # another user's file: it is read all the same
        os.utime(descriptor)


def _remove_if_abandoned(path: str) -> bool:
    """Removes a part that no process holds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        abandoned = try_lock(descriptor) and is_at(descriptor, path)  # or it was renamed, and this is the next part
        if abandoned:
            os.unlink(path)
        return abandoned
    finally:
        os.close(descriptor)
