"""From what a person writes to a list of shards: files, folders, globs, braces, `::` lists, commands; local or not.

`expand_shards` looks whether all of them are there; `name_shards` trusts names that end with .tar, so that thousands of
ranks ask nothing of a store that rank 0 has asked before. A folder is listed once, in one go, and not shard by shard.
"""

import fnmatch
import glob
import os
import posixpath
import re
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand

from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.shard_paths import (
    ShardGroup,
    ShardPaths,
    decoded,
    naturally_sorted,
    packed,
    packed_bytes,
    split_query,
)
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import is_local
from clipx.storage.remote import PIPE, is_http

ABSENT = -1
"""Size of a shard that is not there."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_FEW = 16  # shards of a remote folder up to which each is asked for instead of listing the folder
_STATS_AT_ONCE = 4096
_WAITS_S = 0.2  # for so many: the answers come over a network; on a local disk (20 ms) threads halve the speed
_PENDING = 4096


class ShardStates(NamedTuple):
    """What tells versions of shards apart, int64 (S,) each."""

    size_S: np.ndarray
    """Bytes; 0 if not known, `ABSENT` if the shard is not there."""
    mtime_S: np.ndarray
    """Nanoseconds; 0 if the store knows none."""


class NamedShards(NamedTuple):
    """Shards and who named them."""

    paths: ShardPaths
    patterns: Sequence[str]
    ends: Sequence[int]
    """How many shards the patterns up to each one name."""

    def pattern(self, shard: int) -> str:
        """The pattern that names a shard."""
        return self.patterns[int(np.searchsorted(np.asarray(self.ends), shard, side="right"))]


def expand_shards(patterns: Sequence[str]) -> ShardPaths:
    """The tar files that `patterns` name, in natural order (2 before 10) within each pattern, folder by folder.

    Args:
        patterns: files, folders (their *.tar), globs, braces ({00000..01242}, {a,b}), and lists of these joined by
            `::`; local, anything that fsspec opens, or `pipe:COMMAND`. Many shards of a web server, and commands, are
            not asked for: one that is absent is found when it is read.

    Raises:
        InputError: a pattern that matches nothing, or a shard that is named twice.
    """
    folders = RemoteFolders()
    named = name_shards(patterns, folders)
    shard_states(named, folders)
    return named.paths


def name_shards(patterns: Sequence[str], folders: RemoteFolders) -> NamedShards:
    """Does what `expand_shards` does, but does not look for names that end with .tar; `folders` keeps the listings."""
    single = [part for item in patterns for part in ([item] if item.startswith(PIPE) else item.split("::"))]
    ends = array("q")

    def runs() -> Iterator[ShardGroup]:
        count = 0
        for pattern in single:
            try:
                for run in _in_order(_expand(pattern, folders)):
                    count += len(run.names)
                    yield run
            except OSError as error:
                raise InputError(f"shards {pattern!r} cannot be listed: {error}; {hint(error)}") from error
            ends.append(count)

    named = NamedShards(ShardPaths(_joined(runs())), single, ends)
    _refuse_twice(named)
    return named


def shard_states(named: NamedShards, folders: RemoteFolders) -> ShardStates:
    """Sizes and times of shards, of which each must be there.

    Raises:
        InputError: a shard that is not there, or cannot be asked for.
    """
    states = ShardStates(*np.zeros((2, len(named.paths)), np.int64))
    blocks = [
        (run, start, first)
        for run, start in zip(named.paths.runs, named.paths.starts, strict=False)
        for first in range(0, len(run.names), _STATS_AT_ONCE)
    ]

    def ask(block: tuple[ShardGroup, int, int]) -> None:
        (prefix, all_names), start, first = block
        names = all_names[first : first + _STATS_AT_ONCE]
        into = slice(start + first, start + first + len(names))
        try:
            if is_local(prefix):
                states.size_S[into], states.mtime_S[into] = _local_states(prefix, names)
            elif prefix != PIPE:
                found = folders.states(prefix, names, may_list=len(all_names) > _FEW)
                states.size_S[into], states.mtime_S[into] = found
        except OSError as error:
            shard = prefix + decoded(names[0])
            raise InputError(f"shards {shard!r} cannot be listed: {error}; {hint(error)}") from error

    began = time.perf_counter()
    for block in blocks[:1]:
        ask(block)
    if time.perf_counter() - began > _WAITS_S or not all(is_local(run.prefix) for run in named.paths.runs):
        from clipx.data.parallel import in_threads

        list(in_threads(ask, blocks[1:]))
    else:
        list(map(ask, blocks[1:]))
    for shard in np.flatnonzero(states.size_S == ABSENT)[:1].tolist():
        raise _no_shard(named.paths[shard], named.pattern(shard))
    return states


def _joined(runs: Iterable[ShardGroup]) -> Iterator[ShardGroup]:
    """Neighbours of one folder as one run."""
    for prefix, group in groupby(runs, key=attrgetter("prefix")):
        names: list[np.ndarray] = []
        for run in group:
            names.append(run.names)
            if len(names) == _PENDING:
                names = [np.concatenate(names)]
        yield ShardGroup(prefix, _concatenated(names))


def _concatenated(names: list[np.ndarray]) -> np.ndarray:
    """All names; a single array stays the same one, which folders named by braces share."""
    return names[0] if len(names) == 1 else np.concatenate(names)


def _in_order(runs: Iterable[ShardGroup]) -> Iterator[ShardGroup]:
    """The shards of a pattern: folders in natural order, and so the names in each."""
    by_prefix: dict[str, list[np.ndarray]] = {}
    for run in runs:
        by_prefix.setdefault(run.prefix, []).append(run.names)
    sorted_names: dict[int, np.ndarray] = {}  # braces in a folder's name share one array
    for prefix in map(decoded, naturally_sorted(packed(by_prefix)).tolist()):
        names = _concatenated(by_prefix[prefix])
        by_prefix[prefix] = [names]  # keeps it, and so its id, alive
        if id(names) not in sorted_names:
            sorted_names[id(names)] = naturally_sorted(names)
        yield ShardGroup(prefix, sorted_names[id(names)])


def _expand(pattern: str, folders: RemoteFolders) -> Iterator[ShardGroup]:
    """The shards of one pattern in any order."""
    if pattern.startswith(PIPE):
        yield ShardGroup(PIPE, packed(_braces(pattern.removeprefix(PIPE), escape=False)))
        return
    if is_http(pattern) and "?" in pattern:
        with_query = [split_query(address) for address in _braces(pattern, escape=False)]
        if all(name for _, name in with_query):
            yield from (ShardGroup(prefix, packed([name])) for prefix, name in with_query)
            return
    path = os.path.expanduser(pattern.removeprefix("file://"))
    folder, slash, name = path.rpartition("/")
    plain = name.endswith(".tar") and not glob.has_magic(path) and "\\" not in path
    if plain and folder.count("{") == folder.count("}"):
        names = packed(_braces(name, escape=False))
        yield from (ShardGroup(prefix, names) for prefix in _braces(folder + slash, escape=False))
        return
    for alternative in _braces(path, escape=True):
        runs = list(_alternative(alternative, folders))
        if not any(len(run.names) for run in runs):
            raise _no_shard(alternative, pattern)
        yield from runs


def _braces(pattern: str, *, escape: bool) -> Iterator[str]:
    try:
        return iter(braceexpand(pattern, escape))
    except ValueError as error:
        raise InputError(f"shards {pattern!r} cannot be listed: a brace is not closed; close it") from error


def _alternative(path: str, folders: RemoteFolders) -> Iterator[ShardGroup]:
    """The shards of a path without braces."""
    prefix, name = path[: path.rfind("/") + 1], path[path.rfind("/") + 1 :]
    if not is_local(path):
        if glob.has_magic(path):
            yield from folders.matches(path)
        elif name.endswith(".tar"):
            yield ShardGroup(prefix, packed([name]))
        else:
            yield from folders.tars(path)
    elif not glob.has_magic(prefix) and glob.has_magic(name):
        yield from _local_tars(prefix, name)
    else:
        for match in glob.glob(path) if glob.has_magic(path) else [path]:
            if os.path.isdir(match):
                yield from _local_tars(posixpath.join(match, ""), None)
            elif match.endswith(".tar") or (match == path and os.path.exists(path)):
                yield ShardGroup(match[: match.rfind("/") + 1], packed([posixpath.basename(match)]))


def _local_tars(prefix: str, pattern: str | None) -> Iterator[ShardGroup]:
    """The tar files of a folder, and of its folders, whose names match; None means all of the folder's own."""
    matches = re.compile(fnmatch.translate(pattern or "*").encode("utf-8", "surrogateescape")).match
    hidden = pattern is not None and not pattern.startswith(".")
    deeper: list[bytes] = []

    def files() -> Iterator[bytes]:
        with os.scandir(os.fsencode(prefix or ".")) as entries:
            for entry in entries:
                if not matches(entry.name) or (hidden and entry.name.startswith(b".")):
                    continue
                if entry.name.endswith(b".tar") and not entry.is_dir():
                    yield entry.name
                elif pattern is not None and entry.is_dir():
                    deeper.append(entry.name)

    try:
        yield ShardGroup(prefix, packed_bytes(files()))
    except (FileNotFoundError, NotADirectoryError):
        return
    for folder in deeper:
        yield from _local_tars(f"{prefix}{decoded(folder)}/", None)


def _local_states(prefix: str, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    folder = os.fsencode(prefix)
    sizes, mtimes = array("q"), array("q")
    for name in names.tolist():
        try:
            status = os.stat(folder + name)
            there = not stat.S_ISDIR(status.st_mode)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        sizes.append(status.st_size if there else ABSENT)
        mtimes.append(status.st_mtime_ns if there else 0)
    return np.frombuffer(sizes, np.int64), np.frombuffer(mtimes, np.int64)


def _refuse_twice(named: NamedShards) -> None:
    """Raises InputError if two names are one shard; local folders are compared as absolute paths."""
    runs: dict[str, list[int]] = {}
    for i, run in enumerate(named.paths.runs):
        folder = os.path.abspath(run.prefix) if is_local(run.prefix) else run.prefix
        runs.setdefault(folder, []).append(i)
    for indices in runs.values():
        names = _concatenated([named.paths.runs[i].names for i in indices])
        order = np.argsort(names, kind="stable")
        twice = np.flatnonzero(names[order[1:]] == names[order[:-1]])
        if len(twice):
            shards = np.concatenate([np.arange(*named.paths.starts[i : i + 2]) for i in indices])
            shard = int(shards[order[1:][twice]].min())
            raise InputError(
                f"shard {named.paths[shard]} is named twice (again by {named.pattern(shard)!r}); name each shard once"
            )


def _no_shard(path: str, pattern: str) -> InputError:
    origin = "" if path == pattern else f" (from {pattern!r})"
    return InputError(f"shards {path!r}{origin} match no tar file; {_hint(path)}")


def _hint(path: str) -> str:
    """What to do about a pattern without shards, from what lies there."""
    if not is_local(path):
        return "nothing is there: check the bucket or host, and the path"
    if os.path.isdir(path):
        if path.endswith(".tar"):
            return f"it is a folder: write {path}/"
        if packed_files := sorted(name for name in os.listdir(path) if name.endswith(_COMPRESSED)):
            found = f"{len(packed_files)} compressed files are there, {packed_files[0]} first"
            return f"{found}: unpack them to plain *.tar"
        if deeper := sorted(glob.glob(f"{glob.escape(path)}/*/*.tar")):
            return f"subfolders are not searched: name {os.path.dirname(deeper[0])}"
    return "give a tar file, a folder of *.tar, or a glob"
