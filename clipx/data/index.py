"""Which shards there are and how many samples each holds: the only thing that the data order is made of.

`expand_shards` turns what a person writes into a list of tar files; `build_index` (rank 0, or `clipx data index`)
scans those that are new or changed; `load_index` (the other ranks, after it) only reads. One catalogue per folder of
shards, read once, holds the counts; the offsets of the samples lie in a sidecar per shard.
"""

import glob
import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
from braceexpand import braceexpand

from clipx.data.files import FileState, file_state, is_local, open_ranges
from clipx.data.sidecar import SUFFIX, NotTarError, Sidecar, replace_file, scan_tar, write_sidecar
from clipx.errors import InputError

CATALOGUE = "clipx-index.json"
_VERSION = 1
_THREADS = 16  # a scan waits for storage more than it computes
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The shards of a run in their original order."""

    paths: tuple[str, ...]
    """Local paths and fsspec addresses."""
    counts: np.ndarray
    """int64 (S,), samples of each shard."""
    sidecar_folders: Mapping[str, Path]
    """Where the sidecars of a folder of shards lie."""

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.counts.sum())

    def fingerprint(self) -> str:
        """SHA-256 over base names and counts in order: equal for equal sets, wherever they lie."""
        rows = zip(self.paths, self.counts.tolist(), strict=True)
        return hashlib.sha256(json.dumps([[posixpath.basename(p), n] for p, n in rows]).encode()).hexdigest()

    def sidecar_path(self, shard: int) -> Path:
        """The sidecar of the shard with this ordinal."""
        folder, name = posixpath.split(self.paths[shard])
        return self.sidecar_folders[folder] / (name + SUFFIX)


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """The tar files that `patterns` name, sorted naturally (2 before 10) within each pattern.

    Args:
        patterns: files, folders (their *.tar), globs, braces ({00000..01242}, {a,b}), and lists of these joined by
            `::`; local, or anything that fsspec opens.

    Raises:
        InputError: a pattern that matches nothing, or a shard that is named twice.
    """
    listing = _Listing()
    paths: dict[str, str] = {}
    for pattern in (part for item in patterns for part in item.split("::")):
        for path in sorted(_expand(pattern, listing), key=_natural):
            identity = os.path.abspath(path) if is_local(path) else path
            if identity in paths:
                raise InputError(f"shard {path} is named twice (again by {pattern!r}); name each shard once")
            paths[identity] = path
    return list(paths.values())


def _natural(path: str) -> tuple[list[str | int], str]:
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", path)], path


class _Listing:
    """Names of local folders, each folder listed once: a request per folder, not one per shard."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, bool]] = {}

    def is_folder(self, path: str) -> bool | None:
        """Whether the local `path` is a folder; None when it is not there."""
        folder, name = os.path.split(path)
        if not name or name in (".", ".."):
            return True if os.path.isdir(path) else None
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = {entry.name: entry.is_dir() for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = {}
        return self._names[folder].get(name)


def _expand(pattern: str, listing: _Listing) -> Iterator[str]:
    """Every shard of one pattern, each alternative of its braces checked to be there."""
    pattern = os.path.expanduser(pattern.removeprefix("file://"))
    expand = _expand_local if is_local(pattern) else _expand_remote
    try:
        matches = [(path, expand(path, listing)) for path in braceexpand(pattern)]
    except (OSError, ValueError, ImportError) as error:  # fsspec: no access, unknown protocol, its package is missing
        raise InputError(f"shards {pattern!r} cannot be listed: {error}; check the address and the rights") from error
    for path, shards in matches:
        if not shards:
            origin = "" if path == pattern else f" (from {pattern!r})"
            raise InputError(f"shards {path!r}{origin} match no tar file; {_mend(path)}")
        yield from shards


def _mend(path: str) -> str:
    """What to do about a pattern without shards, from what lies there."""
    if os.path.isdir(path):
        if packed := sorted(name for name in os.listdir(path) if name.endswith(_COMPRESSED)):
            return f"{len(packed)} compressed files are there, {packed[0]} first: unpack them to plain *.tar"
        if deeper := sorted(glob.glob(f"{glob.escape(path)}/*/*.tar")):
            return f"subfolders are not searched: name {os.path.dirname(deeper[0])}"
    return "give a tar file, a folder of *.tar, or a glob"


def _expand_local(path: str, listing: _Listing) -> list[str]:
    if glob.has_magic(path):
        found = [shard for match in glob.glob(path) for shard in _literal(match, listing)]
        return [shard for shard in found if shard.endswith(".tar")]
    return _literal(path, listing)


def _literal(path: str, listing: _Listing) -> list[str]:
    is_folder = listing.is_folder(path)
    if is_folder:
        return [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".tar")]
    return [] if is_folder is None else [path]


def _expand_remote(path: str, _: _Listing) -> list[str]:
    filesystem, inner = fsspec.core.url_to_fs(path)
    if glob.has_magic(inner):
        found = [match for match in filesystem.glob(inner) if match.endswith(".tar")]
    elif filesystem.isdir(inner):
        found = [name for name in filesystem.ls(inner, detail=False) if name.endswith(".tar")]
    else:
        found = [inner] if filesystem.exists(inner) else []
    return [filesystem.unstrip_protocol(name) for name in found]


class _Entry(NamedTuple):
    num_samples: int
    shard: FileState


class _Catalogue:
    """The counts of one folder's shards and the place of their sidecars."""

    def __init__(self, shard_folder: str, place: Path) -> None:
        self.place = place
        self._file = place / CATALOGUE
        self._entries = self._read()
        self._sidecars = {path.name for path in place.glob("*" + SUFFIX)}
        self._changed = False
        self._shard_folder = shard_folder

    def _read(self) -> dict[str, _Entry]:
        try:
            content = json.loads(self._file.read_bytes())
            if content["version"] != _VERSION:
                return {}
            rows = content["shards"].items()
            return {name: _Entry(int(count), FileState(*map(int, state))) for name, (count, *state) in rows}
        except (FileNotFoundError, NotADirectoryError, AttributeError, LookupError, TypeError, ValueError):
            return {}  # absent, or not as `write` leaves it: the shards are indexed again

    def count(self, name: str) -> int | None:
        """Samples of a shard as last indexed."""
        entry = self._entries.get(name)
        return None if entry is None else entry.num_samples

    def update(self, name: str) -> None:
        """Brings the entry and the sidecar of a shard to the shard's present state."""
        path = posixpath.join(self._shard_folder, name)
        try:
            state = file_state(path)
            entry = self._entries.get(name)
            sidecar = self.place / (name + SUFFIX)
            if entry is not None and entry.shard == state and sidecar.name in self._sidecars:
                return
            count = Sidecar.read_count(sidecar, state)
            count = _index_shard(path, state, sidecar) if count is None else count
        except OSError as error:
            raise InputError(f"shard {path} cannot be read: {error.strerror or error}; check path and disk") from error
        self._entries[name] = _Entry(count, state)
        self._changed = True

    def write(self) -> None:
        """Keeps the entries; those of other shards of the folder stay."""
        if not self._changed:
            return
        entries = self._read() | self._entries
        shards = {name: (entry.num_samples, *entry.shard) for name, entry in sorted(entries.items())}
        _write(
            lambda: replace_file(self._file, json.dumps({"version": _VERSION, "shards": shards}).encode()), self._file
        )


def _write(action: Callable[[], None], path: Path) -> None:
    try:
        action()
    except OSError as error:
        raise InputError(
            f"index {path} cannot be written: {error.strerror}; make room there, or set data.index to another folder"
        ) from error


def _index_shard(path: str, state: FileState, sidecar: Path) -> int:
    """Scans one shard and writes its sidecar; returns its number of samples."""
    file = open_ranges(path, sequential=True)
    try:
        scan = scan_tar(file)
    except NotTarError:
        compressed = file.read_at(0, 4).startswith((_GZIP, _ZSTD))
        mend = "unpack it to a plain tar" if compressed else "leave it out, or make it again"
        raise InputError(f"shard {path} is {'compressed' if compressed else 'no tar file'}; {mend}") from None
    finally:
        file.close()
    if scan.damage and scan.keys:
        log.warning("shard %s %s; it counts with the %d samples before that", path, scan.damage, len(scan.keys))
    _write(lambda: write_sidecar(sidecar, scan, state), sidecar)
    return len(scan.keys)


def build_index(
    patterns: Sequence[str],
    *,
    index_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Indexes shards, scanning those that are new or whose size or time changed.

    The index of a folder lies in `index_dir`, else beside the shards, else, where that folder cannot be written, under
    `$CLIPX_CACHE` (default ~/.cache/clipx). Files are replaced whole, so two runs may index at the same time.

    Args:
        patterns: as for `expand_shards`.
        index_dir: folder for the index.
        on_progress: called with (shards done, shards).

    Raises:
        InputError: no shard, a shard that is no tar or cannot be read, no sample in all shards, an index that cannot
            be written.
    """
    paths = expand_shards(patterns)
    catalogues = _catalogues(paths, lambda folder: _place(folder, index_dir, may_write=True))
    with ThreadPoolExecutor(_THREADS) as threads:
        updates = threads.map(lambda path: catalogues[posixpath.dirname(path)].update(posixpath.basename(path)), paths)
        for done, _ in enumerate(updates, start=1):
            if on_progress is not None:
                on_progress(done, len(paths))
    for catalogue in catalogues.values():
        catalogue.write()
    index = _gather(paths, catalogues)
    for empty in np.flatnonzero(index.counts == 0):
        log.warning("shard %s holds no samples", paths[empty])
    return index


def load_index(patterns: Sequence[str], *, index_dir: Path | None = None) -> ShardIndex:
    """The index that `build_index` made with the same arguments; reads one file per folder of shards.

    Raises:
        InputError: as `build_index`, or when a shard is not indexed where this process looks.
    """
    paths = expand_shards(patterns)
    return _gather(paths, _catalogues(paths, lambda folder: _place(folder, index_dir, may_write=False)))


def _catalogues(paths: list[str], place: Callable[[str], Path]) -> dict[str, _Catalogue]:
    return {folder: _Catalogue(folder, place(folder)) for folder in dict.fromkeys(map(posixpath.dirname, paths))}


def _gather(paths: list[str], catalogues: Mapping[str, _Catalogue]) -> ShardIndex:
    counts = []
    for path in paths:
        folder, name = posixpath.split(path)
        count = catalogues[folder].count(name)
        if count is None:
            raise InputError(
                f"shard {path} is not in the index at {catalogues[folder].place}; run `clipx data index`, "
                "and set data.index to a folder that every node sees"
            )
        counts.append(count)
    if not any(counts):
        raise InputError(f"the {len(paths)} shards (first: {paths[0]}) hold no samples; give shards with samples")
    folders = {folder: catalogue.place for folder, catalogue in catalogues.items()}
    return ShardIndex(tuple(paths), np.array(counts, dtype=np.int64), folders)


def _place(folder: str, index_dir: Path | None, *, may_write: bool) -> Path:
    """Where the index of a folder of shards lies.

    An index beside the shards wins whether or not it can be written, so that every rank, whatever its rights, reads the
    one that rank 0 made or found.
    """
    if index_dir is None and is_local(folder):
        beside = Path(folder)
        if (beside / CATALOGUE).exists() or (may_write and os.access(beside, os.W_OK)):
            return beside
    absolute = os.path.abspath(folder) if is_local(folder) else folder
    name = f"{posixpath.basename(absolute)}-{hashlib.sha256(absolute.encode()).hexdigest()[:12]}"
    cache = Path(os.environ.get("CLIPX_CACHE", "~/.cache/clipx")).expanduser() / "index"
    return (cache if index_dir is None else index_dir) / name
