"""Where the index of a folder of shards lies: beside it, in `data.index`, or in the user's cache.

A catalogue and the sidecars of the shards stand in one folder, local or remote. Sidecars of a remote index are fetched
into the user's cache when they are first opened, and mapped from there.
"""

import hashlib
import os
import posixpath
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.index.offsets import SUFFIX
from clipx.data.index.remote_folder import ASK
from clipx.data.index.shard_counts import Catalogue
from clipx.data.index.shard_paths import packed_bytes
from clipx.errors import InputError
from clipx.storage.failures import mend
from clipx.storage.files import is_local, read_file, write_file
from clipx.storage.pipe import PREFIX as PIPE

CATALOGUE = "clipx-index.bin"


def cache_folder() -> Path:
    """The user's own place for indexes."""
    return Path(os.environ.get("CLIPX_CACHE", "~/.cache/clipx")).expanduser() / "index"


@dataclass(frozen=True)
class IndexFolder:
    """The place of one folder's catalogue and sidecars."""

    folder: str
    """Local folder or address."""
    read_only: bool = False
    """It was found beside remote shards; only a person who names it may change it."""

    def is_beside(self, prefix: str) -> bool:
        """Whether the shards of the folder `prefix` lie in the same folder."""
        return self.folder == _identity(prefix)

    def catalogue(self) -> Catalogue | None:
        """What was last indexed; None where there is nothing, or nothing whole.

        Raises:
            InputError: the folder cannot be read.
        """
        path = posixpath.join(self.folder, CATALOGUE)
        try:
            return Catalogue.from_bytes(read_file(path, remote=ASK))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            if self.read_only and isinstance(
                error, PermissionError
            ):  # S3's answer for an absent file, without ListBucket
                return None
            raise InputError(f"index {path} cannot be read: {error}; {mend(error)}") from error

    def keep_catalogue(self, catalogue: Catalogue) -> None:
        """Puts the catalogue there.

        Raises:
            InputError: as `write`.
        """
        self.write(CATALOGUE, *catalogue.to_bytes())

    def write(self, name: str, *parts: bytes) -> None:
        """Puts a file there, whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        path = posixpath.join(self.folder, name)
        try:
            write_file(path, *parts)
        except OSError as error:
            raise InputError(
                f"index {path} cannot be written: {error.strerror or error}; "
                "make room there, or set data.index to another folder"
            ) from error

    def sidecar(self, name: str) -> Path:
        """Where the sidecar of a shard lies on this machine, if anywhere."""
        own, cached = Path(self.folder, name + SUFFIX), self._cached(name)
        return own if is_local(self.folder) and (own.exists() or not cached.exists()) else cached

    def stored_sidecars(self) -> np.ndarray:
        """bytes (N,), ascending: the names of the shards whose sidecar lies on this machine."""
        found = []
        for folder in ([self.folder] if is_local(self.folder) else []) + [str(self._cached("").parent)]:
            try:
                with os.scandir(os.fsencode(folder)) as entries:
                    suffix = SUFFIX.encode()
                    found.append(packed_bytes(e.name.removesuffix(suffix) for e in entries if e.name.endswith(suffix)))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return np.sort(np.concatenate(found)) if found else np.empty(0, "S1")

    def put_sidecar(self, name: str, parts: list[bytes]) -> None:
        """Keeps the sidecar of a shard.

        Raises:
            InputError: as `write`.
        """
        self.write(name + SUFFIX, *parts)
        if not is_local(self.folder):
            write_file(str(self._cached(name)), *parts)

    def keep_sidecar(self, name: str, parts: list[bytes]) -> None:
        """Keeps a sidecar on this machine: in the folder itself where that is possible.

        Raises:
            OSError: it cannot be written in the cache either.
        """
        if is_local(self.folder):
            with suppress(OSError):
                write_file(posixpath.join(self.folder, name + SUFFIX), *parts)
                return
        write_file(str(self._cached(name)), *parts)

    def fetch_sidecar(self, name: str, remote: RemoteConfig) -> bool:
        """Brings the sidecar of a remote index here; False where there is none.

        Raises:
            OSError: it cannot be fetched.
        """
        if is_local(self.folder):
            return False
        try:
            data = read_file(posixpath.join(self.folder, name + SUFFIX), remote=remote)
        except FileNotFoundError:
            return False
        write_file(str(self._cached(name)), data)
        return True

    def _cached(self, name: str) -> Path:
        return cache_folder() / _named_by_hash(self.folder) / (name + SUFFIX)


def find_index_folder(prefix: str, index_dir: str | None, *, may_write: bool) -> tuple[IndexFolder, Catalogue | None]:
    """Where the index of the shards of the folder `prefix` lies, and its catalogue.

    An index beside the shards wins whether or not it can be written, so that every rank, whatever its rights, reads the
    one that rank 0 made or found.

    Args:
        prefix: the folder with a slash at its end, "" for the current one, or `pipe:`.
        index_dir: where a person wants the index.
        may_write: whether a new index may be begun beside local shards.

    Raises:
        InputError: the folder's store does not answer.
    """
    folder = _identity(prefix)
    if index_dir is not None:
        same = prefix != PIPE and _identity(index_dir) == folder
        found = IndexFolder(folder if same else posixpath.join(index_dir, _named_by_hash(folder)))
        return found, found.catalogue()
    if prefix != PIPE:
        beside = IndexFolder(folder, read_only=not is_local(folder))
        catalogue = beside.catalogue()
        if catalogue is not None or (is_local(folder) and may_write and os.access(folder, os.W_OK)):
            return beside, catalogue
    cached = IndexFolder(str(cache_folder() / _named_by_hash(folder)))
    return cached, cached.catalogue()


def _identity(folder: str) -> str:
    """One spelling of a folder's address."""
    if folder == PIPE:
        return folder
    return os.path.abspath(folder) if is_local(folder) else folder.rstrip("/")


def _named_by_hash(folder: str) -> str:
    return f"{posixpath.basename(folder).strip(':')}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
