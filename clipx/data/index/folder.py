"""Where the index of a folder of shards lies: beside it, in `data.index`, or in the user's cache.

The shard counts and the offsets of each shard stand in one folder, local or remote. Offsets of a remote index are
fetched into the user's cache when they are first opened, and mapped from there.
"""

import hashlib
import os
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.config.paths import CACHE_VARIABLE, cache_folder
from clipx.data.index.offsets import SUFFIX, ShardOffsets
from clipx.data.index.shard_counts import ShardCounts
from clipx.data.index.shard_paths import ShardGroup, packed_bytes
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import is_local, read_file, write_file
from clipx.storage.locks import try_lock
from clipx.storage.remote import ASK, PIPE

COUNTS_FILE = "clipx-index.bin"
_LOCK_TRIES, _LOCK_POLL_S = 600, 0.05


@dataclass(frozen=True)
class IndexFolder:
    """The place of the counts and offsets of one folder's shards."""

    folder: str
    """Local folder or address."""
    read_only: bool = False
    """Whether it was found beside remote shards; only a person who names it may change it."""

    def is_beside(self, prefix: str) -> bool:
        """Whether the shards of the folder `prefix` lie in the same folder."""
        return self.folder == _canonical(prefix)

    def counts(self) -> ShardCounts | None:
        """The shards that were last indexed; None if there is no such file, or a damaged one.

        Raises:
            InputError: the folder cannot be read.
        """
        path = posixpath.join(self.folder, COUNTS_FILE)
        try:
            return ShardCounts.from_bytes(read_file(path, remote=ASK))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            if self.read_only and isinstance(error, PermissionError):
                return None  # S3's answer for an absent file, without ListBucket
            raise InputError(f"index {path} cannot be read: {error}; {hint(error)}") from error

    def put_counts(self, counts: ShardCounts) -> None:
        """Replaces the counts.

        Raises:
            InputError: the folder cannot be written.
        """
        self._put(COUNTS_FILE, counts.to_bytes())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others on this machine from changing the counts meanwhile, where the file system has locks."""
        if not is_local(self.folder):
            yield
            return
        descriptor = None
        with suppress(OSError):
            os.makedirs(self.folder, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            _lock(descriptor)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def put_offsets(self, name: str, content: bytes) -> None:
        """Replaces the offsets of a shard, and the copy of them on this machine.

        Raises:
            InputError: the folder cannot be written.
        """
        self._put(name + SUFFIX, content)
        if not is_local(self.folder):
            write_file(str(self._cached(name)), content)

    def _put(self, name: str, content: bytes) -> None:
        path = posixpath.join(self.folder, name)
        try:
            write_file(path, content)
        except OSError as error:
            fault = f"index {path} cannot be written: {error.strerror or error}"
            moved = f", or {CACHE_VARIABLE} in the environment" if Path(path).is_relative_to(cache_folder()) else ""
            raise InputError(f"{fault}; make room there, or set data.index to another folder{moved}") from error

    def offsets_path(self, name: str) -> Path:
        """Where the offsets of a shard lie on this machine, if anywhere."""
        path, cached = Path(self.folder, name + SUFFIX), self._cached(name)
        return path if is_local(self.folder) and (path.exists() or not cached.exists()) else cached

    def open_offsets(self, name: str) -> Iterator[ShardOffsets]:
        """The offsets of a shard that lie on this machine, without broken ones.

        Those in the folder come first; if they are broken and cannot be replaced, others were made in the cache.
        """
        beside = [Path(self.folder, name + SUFFIX)] if is_local(self.folder) else []
        for path in (*beside, self._cached(name)):
            with suppress(OSError, ValueError):
                yield ShardOffsets(path)

    def stored_offsets(self) -> np.ndarray:
        """bytes (N,), ascending: the names of the shards whose offsets lie on this machine."""
        suffix = SUFFIX.encode()
        names = [np.empty(0, "S1")]
        for folder in ([self.folder] if is_local(self.folder) else []) + [str(self._cached("").parent)]:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(os.fsencode(folder)) as entries:
                names.append(packed_bytes(e.name.removesuffix(suffix) for e in entries if e.name.endswith(suffix)))
        return np.sort(np.concatenate(names))

    def keep_offsets(self, name: str, content: bytes) -> Path:
        """Keeps the offsets of a shard on this machine: in the folder itself if it can be written, else in the cache.

        Returns:
            Where they are.

        Raises:
            OSError: the cache cannot be written either.
        """
        if is_local(self.folder):
            with suppress(OSError):
                write_file(posixpath.join(self.folder, name + SUFFIX), content)
                return Path(self.folder, name + SUFFIX)
        write_file(str(self._cached(name)), content)
        return self._cached(name)

    def fetch_offsets(self, name: str, remote: RemoteConfig) -> bool:
        """Brings the offsets of a shard from a remote index here; False if there are none.

        Raises:
            OSError: they cannot be fetched.
        """
        if is_local(self.folder):
            return False
        try:
            content = read_file(posixpath.join(self.folder, name + SUFFIX), remote=remote)
        except FileNotFoundError:
            return False
        write_file(str(self._cached(name)), content)
        return True

    def _cached(self, name: str) -> Path:
        return cache_folder() / "index" / _hashed_name(self.folder) / (name + SUFFIX)


def find_index_folder(prefix: str, index_dir: str | None, *, may_write: bool) -> tuple[IndexFolder, ShardCounts | None]:
    """Where the index of the shards of the folder `prefix` lies, and its counts.

    An index beside the shards wins whether or not it can be written, so that every rank, whatever its rights, reads the
    one that rank 0 made or found. Beside local shards a new one may be begun only if `may_write`.

    Args:
        prefix: the folder with a slash at its end, "" for the current one, or `pipe:`.
        index_dir: where a person wants the index.

    Raises:
        InputError: the folder's store does not answer.
    """
    folder = _canonical(prefix)
    if index_dir is not None:
        same = prefix != PIPE and _canonical(index_dir) == folder
        chosen = IndexFolder(folder if same else posixpath.join(index_dir, _hashed_name(folder)))
        return chosen, chosen.counts()
    if prefix != PIPE:
        beside = IndexFolder(folder, read_only=not is_local(folder))
        counts = beside.counts()
        if counts is not None or (is_local(folder) and may_write and os.access(folder, os.W_OK)):
            return beside, counts
    cached = IndexFolder(str(cache_folder() / "index" / _hashed_name(folder)))
    return cached, cached.counts()


def _lock(descriptor: int) -> None:
    """Takes a lock that others hold for moments only; one that is held for long is not waited for."""
    for _ in range(_LOCK_TRIES):
        if try_lock(descriptor):
            return
        time.sleep(_LOCK_POLL_S)


def _canonical(folder: str) -> str:
    """One spelling of a folder's address."""
    if folder == PIPE:
        return folder
    return os.path.abspath(folder) if is_local(folder) else folder.rstrip("/")


def _hashed_name(folder: str) -> str:
    return f"{posixpath.basename(folder).strip(':')}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class IndexedGroup:
    """The shards of one run, and where their index lies."""

    run: ShardGroup
    start: int
    """Ordinal of the first shard."""
    folder: IndexFolder
    names: np.ndarray
    """bytes (N,), the shards' names in the index."""

    @property
    def shards(self) -> slice:
        """The ordinals of the shards."""
        return slice(self.start, self.start + len(self.names))
