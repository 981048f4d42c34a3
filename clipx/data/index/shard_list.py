"""From what a person writes to a list of shards: files, folders, globs, braces, `::` lists, commands; local or not.

`expand_shards` looks whether all of them are there; `name_shards` trusts names that end with .tar, so that thousands of
ranks ask nothing of a store that rank 0 has asked before. A folder is listed once, in one go, and not shard by shard.
"""

import errno
import os
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from clipx.config.paths import expand_home
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.shard_paths import ShardGroup, ShardPaths, decoded, naturally_sorted, packed
from clipx.data.index.shard_patterns import expand_pattern, no_shard
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import is_local
from clipx.storage.remote import PIPE

ABSENT = -1
"""Size of a shard that is not there."""
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
    single = [part for item in patterns for part in ([item] if _is_one(item) else item.split("::"))]
    ends = array("q")

    def runs() -> Iterator[ShardGroup]:
        count = 0
        for pattern in single:
            try:
                for run in _in_order(expand_pattern(pattern, folders)):
                    count += len(run.names)
                    yield run
            except OSError as error:
                raise InputError(f"shards {pattern!r} cannot be listed: {error}; {hint(error)}") from error
            ends.append(count)

    named = NamedShards(ShardPaths(_joined(runs())), single, ends)
    _refuse_twice(named)
    return named


def _is_one(pattern: str) -> bool:
    """Whether `::` does not separate patterns: in commands, and in a path that exists as it is written."""
    if "::" not in pattern or pattern.startswith(PIPE):
        return True
    return is_local(pattern) and os.path.lexists(expand_home(pattern))


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
        raise no_shard(named.paths[shard], named.pattern(shard))
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


def _local_states(prefix: str, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    folder = os.fsencode(prefix)
    sizes, mtimes = array("q"), array("q")
    for name in names.tolist():
        try:
            status = os.stat(folder + name)
            there = stat.S_ISREG(status.st_mode)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            there = False
        sizes.append(status.st_size if there else ABSENT)
        mtimes.append(status.st_mtime_ns if there else 0)
    return np.frombuffer(sizes, np.int64), np.frombuffer(mtimes, np.int64)


def _refuse_twice(named: NamedShards) -> None:
    """Raises InputError if two names are one shard; of local folders it counts where links lead."""
    runs: dict[str, list[int]] = {}
    for i, run in enumerate(named.paths.runs):
        folder = os.path.realpath(run.prefix) if is_local(run.prefix) else run.prefix
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
