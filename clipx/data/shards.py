"""Reads single samples out of shards, with the offsets that the index holds."""

import itertools
import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from clipx.config.data import CacheConfig, RemoteConfig
from clipx.data.index.offsets import ShardOffsets
from clipx.data.index.shard_index import ShardIndex
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.errors import RunError
from clipx.storage.failures import hint
from clipx.storage.files import LocalFile, RangeReader, is_local, open_ranges
from clipx.storage.remote import DEFAULTS, LONGEST_WAIT_S
from clipx.storage.tar import Member, fits_memory, too_large
from clipx.storage.tar_headers import begins_at

_MAX_OPEN_SHARDS = 1024  # if the limit of descriptors allows it; a loader process reads as many as it has lanes
_RETRY_AFTER_S = (0.1, 1.0)
TRUNCATED = "shard truncated"
"""The reason of a bad sample behind the end of its shard, which was longer when it was indexed."""

if TYPE_CHECKING:  # needed only for remote shards
    from clipx.data.prefetch import Prefetcher
    from clipx.storage.shard_cache import ShardCache

T = TypeVar("T")

log = logging.getLogger(__name__)


class BadSampleError(Exception):
    """A sample that cannot be read as a pair because of its bytes, not of the storage; the message is one line."""


class _OpenShard(NamedTuple):
    file: RangeReader
    offsets: ShardOffsets


class _Entry:
    """Holds an open shard; of several threads that want it one opens it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shard: _OpenShard | None = None


class _OpenShards:
    """The open shards of a process, as many as its file descriptors allow; any of its threads may call."""

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        *,
        extensions: Sequence[frozenset[str] | None],
        remote: RemoteConfig,
        cache: "ShardCache | None",
    ) -> None:
        self._indexes = indexes
        self._extensions = extensions
        self._remote = remote
        self._cache = cache
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, int], _Entry] = OrderedDict()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = min(_MAX_OPEN_SHARDS, max(16, descriptors // 3))  # a shard takes two: itself and its offsets

    def get(self, source: int, shard: int) -> _OpenShard:
        """The open shard.

        Raises:
            OSError: it cannot be opened.
            RunError: it is not the one that was indexed.
        """
        with self._lock:
            entry = self._entries.setdefault((source, shard), _Entry())
            self._entries.move_to_end((source, shard))
            if entry.shard is not None:
                return entry.shard
            while len(self._entries) > self._max_open:
                self._entries.popitem(last=False)  # closed when the last that reads it lets it go
        with entry.lock:
            if entry.shard is None:
                entry.shard = self._open(source, shard)
            return entry.shard

    def drop(self, source: int, shard: int) -> None:
        """The next `get` opens the shard anew."""
        with self._lock:
            self._entries.pop((source, shard), None)

    def open(self, source: int, shard: int) -> RangeReader | None:
        """Implements `prefetch.ShardAccess`."""
        file = self.get(source, shard).file
        if isinstance(file, LocalFile):
            file.mark_used()
            return None
        return file

    def members(self, ref: SampleRef) -> list[Member]:
        """Implements `prefetch.ShardAccess`; nothing of a sample that is too large is fetched."""
        members = self.wanted(ref)
        return members if fits_memory(members) else []

    def wanted(self, ref: SampleRef) -> list[Member]:
        """Those members of a sample that are read."""
        wanted = self._extensions[ref.source]
        members = self.get(ref.source, ref.shard).offsets.members(ref.index)
        return members if wanted is None else [member for member in members if member.extension in wanted]

    def _open(self, source: int, shard: int) -> _OpenShard:
        index = self._indexes[source]
        path, offsets = index.paths[shard], index.offsets(shard, remote=self._remote)
        file = open_ranges(path, state=offsets.shard, remote=self._remote, cache=self._cache)
        if file.size != offsets.shard.size:
            raise RunError(
                f"shard {path} changed after it was indexed ({offsets.shard.size} bytes then, {file.size} now); "
                "run `clipx data index` again and leave shards alone while a run reads them"
            )
        if isinstance(file, LocalFile) and not _describes(offsets, file):  # of a remote one it would cost requests
            raise RunError(
                f"shard {path} is not the one that was indexed, although it has its size: no files begin where its "
                "index says; `touch` it and run `clipx data index` again"
            )
        return _OpenShard(file, offsets)


def _describes(offsets: ShardOffsets, file: RangeReader) -> bool:
    """Whether members begin where the offsets say, by three samples, of which damage may have spoilt one."""
    count = offsets.num_samples
    probes = [offsets.members(i)[-1] for i in sorted({0, count // 2, count - 1} if count else ())]
    return sum(begins_at(file, member.offset, member.size) for member in probes) * 2 >= len(probes)


class ShardReader:
    """Random access to the samples of indexed shards; safe to use after a fork and to send to another process.

    Local shards are read in place. Expected samples of remote shards are fetched in the background, many in one request
    (`prefetch.py`), and others when they are read; a cache keeps whole shards (`shard_cache.py`). One thread at a time
    may call it.

    Args:
        extensions: members to read of each source; None reads all.
        cache: for whole remote shards; None fetches only the samples that are read.

    Raises:
        InputError: a cache folder that cannot be written.
    """

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        *,
        extensions: Sequence[Collection[str] | None],
        remote: RemoteConfig = DEFAULTS,
        cache: CacheConfig | None = None,
    ) -> None:
        self._indexes = tuple(indexes)
        self._extensions = tuple(None if names is None else frozenset(names) for names in extensions)
        self._remote = remote
        self._cache = cache
        self.remote_sources = frozenset(
            number for number, index in enumerate(self._indexes) if not all(map(is_local, index.paths))
        )
        self.wait_s = 0.0
        self._prefetcher: Prefetcher | None
        self._start_process()

    def _start_process(self) -> None:
        """Makes what processes cannot share: file descriptors and threads."""
        cache, self._prefetcher = None, None
        if self._cache is not None:
            from clipx.storage.shard_cache import ShardCache

            stall_s = (self._remote.retries + 1) * (self._remote.timeout_s + LONGEST_WAIT_S)
            cache = ShardCache(self._cache.folder, max_bytes=int(self._cache.max_gb * 1e9), stall_s=stall_s)
        self._open = _OpenShards(self._indexes, extensions=self._extensions, remote=self._remote, cache=cache)
        if self.remote_sources:
            from clipx.data.prefetch import Prefetcher

            self._prefetcher = Prefetcher(self._open, connections=self._remote.connections)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None, "_prefetcher": None, "_process": None}

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._start_process()

    def expect(self, refs: Sequence[SampleRef], *, until: int) -> None:
        """Fetches samples that will be read soon in the background; local ones are left alone.

        Args:
            refs: each will be read once; one that is not read stands in memory until it is forgotten.
            until: the last batch that may read them.
        """
        self._follow_fork()
        if self._prefetcher is not None:
            self._prefetcher.expect([ref for ref in refs if not is_local(self._path(ref))], until=until)

    def forget(self, before: int) -> None:
        """Frees what was expected until an earlier batch than `before`."""
        self._follow_fork()
        if self._prefetcher is not None:
            self._prefetcher.forget(before)

    def read(self, ref: SampleRef) -> dict[str, bytes]:
        """The content of a sample's members by extension, in lower case and without the first dot.

        Raises:
            BadSampleError: the shard ends before the sample does, or the sample is too large to be one.
            RunError: the storage failed after all retries, or the shard is not the one that was indexed.
        """
        self._follow_fork()
        start = time.perf_counter()
        sample = self._guarded(ref, lambda: self._read(ref))
        if ref.source in self.remote_sources:
            self.wait_s += time.perf_counter() - start
        return sample

    def name(self, ref: SampleRef) -> SampleName:
        """The names of a sample.

        Raises:
            RunError: the storage failed after all retries, or the shard is not the one that was indexed.
        """
        self._follow_fork()
        shard = self._guarded(ref, lambda: self._open.get(ref.source, ref.shard))
        members = tuple(member.extension for member in shard.offsets.members(ref.index))
        return SampleName(self._path(ref), shard.offsets.key(ref.index), members)

    def _path(self, ref: SampleRef) -> str:
        return self._indexes[ref.source].paths[ref.shard]

    def _read(self, ref: SampleRef) -> dict[str, bytes]:
        contents = None if self._prefetcher is None else self._prefetcher.take(ref)
        file, members = self._open.get(ref.source, ref.shard).file, self._open.wanted(ref)
        if any(member.offset + member.size > file.size for member in members):
            raise BadSampleError(TRUNCATED)
        if not fits_memory(members):
            raise BadSampleError(too_large(members))
        if contents is None and isinstance(file, LocalFile):
            contents = [file.read_at(member.offset, member.size) for member in members]
        elif contents is None:
            from clipx.data.prefetch import read_members

            contents = read_members(file, members)  # one request, not one per member
        fields = {}
        for member, content in zip(members, contents, strict=True):
            if len(content) < member.size:
                raise BadSampleError(TRUNCATED)
            fields[member.extension] = content
        return fields

    def _guarded(self, ref: SampleRef, action: Callable[[], T]) -> T:
        """The result of `action`, which may raise an OSError.

        Tries three times if the shard is local, as network file systems fail too; remote files have their own retries.

        Raises:
            RunError: all tries failed.
        """
        for attempt in itertools.count():
            try:
                return action()
            except OSError as error:
                path = self._path(ref)
                waits = _RETRY_AFTER_S if is_local(path) else ()
                if attempt == len(waits):
                    tries = f" after {attempt + 1} tries" if waits else ""
                    raise RunError(
                        f"shard {path} cannot be read{tries}: {error}; {hint(error)}, then run the same command again"
                    ) from error
                log.warning("shard %s: %s; trying again in %s s", path, error, waits[attempt])
            self._open.drop(ref.source, ref.shard)
            time.sleep(waits[attempt])
        raise AssertionError("unreachable")
