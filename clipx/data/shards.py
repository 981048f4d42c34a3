"""Reads single samples out of shards by their place, with the offsets that the index holds."""

import itertools
import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from clipx.config.data import CacheConfig, RemoteConfig
from clipx.data.index.offsets import ShardOffsets
from clipx.data.index.shard_index import ShardIndex
from clipx.data.order import Place
from clipx.data.prefetch import ReadAhead, read_members
from clipx.errors import RunError
from clipx.storage.failures import hint
from clipx.storage.files import LocalFile, RangeReader, is_local, open_ranges
from clipx.storage.remote import DEFAULTS, LONGEST_WAIT_S
from clipx.storage.shard_cache import ShardCache
from clipx.storage.tar import Member

_MAX_OPEN_SHARDS = 1024  # where the limit of descriptors allows it; a loader process reads as many as it has lanes
_RETRY_AFTER_S = (0.1, 1.0)
TRUNCATED = "shard truncated"
"""Why a sample is bad that lies behind the end of its shard, which was longer when it was indexed."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class BadSampleError(Exception):
    """The sample cannot be read as a pair: its bytes are at fault, not the storage; the message is one line."""


@dataclass(frozen=True)
class RawSample:
    """The bytes of one sample."""

    shard: str
    key: str
    fields: dict[str, bytes]
    """By extension, in lower case and without the first dot."""


class SampleName(NamedTuple):
    """What a person needs to find a sample."""

    shard: str
    key: str
    members: tuple[str, ...]
    """Extensions of all its members."""


class _OpenShard(NamedTuple):
    path: str
    file: RangeReader
    offsets: ShardOffsets


class _Slot:
    """A place for an open shard, so that of several threads one opens it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shard: _OpenShard | None = None


class _OpenShards:
    """The shards that this process has open, so many as its descriptors allow, from any of its threads.

    Args:
        indexes: the shards of each source.
        extensions: members to read of each source; None reads all.
        remote: timeout and retries.
        cache: for remote shards.
    """

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        *,
        extensions: Sequence[frozenset[str] | None],
        remote: RemoteConfig,
        cache: ShardCache | None,
    ) -> None:
        self._indexes = indexes
        self._extensions = extensions
        self._remote = remote
        self._cache = cache
        self._lock = threading.Lock()
        self._slots: OrderedDict[tuple[int, int], _Slot] = OrderedDict()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = min(
            _MAX_OPEN_SHARDS, max(16, descriptors // 3)
        )  # a shard takes two, for the map of its offsets

    def get(self, source: int, shard: int) -> _OpenShard:
        """The open shard.

        Raises:
            OSError: it cannot be opened.
            RunError: it is not the one that was indexed.
        """
        with self._lock:
            slot = self._slots.setdefault((source, shard), _Slot())
            self._slots.move_to_end((source, shard))
            if slot.shard is not None:
                return slot.shard
            while len(self._slots) > self._most_open:
                self._slots.popitem(last=False)  # closed when the last that reads it lets it go
        with slot.lock:
            if slot.shard is None:
                slot.shard = self._open(source, shard)
            return slot.shard

    def drop(self, source: int, shard: int) -> None:
        """The next `get` opens the shard anew."""
        with self._lock:
            self._slots.pop((source, shard), None)

    def open(self, source: int, shard: int) -> RangeReader | None:
        """As `read_ahead.ShardAccess`."""
        file = self.get(source, shard).file
        if isinstance(file, LocalFile):
            file.mark_used()
            return None
        return file

    def members(self, place: Place) -> list[Member]:
        """As `read_ahead.ShardAccess`."""
        return self.wanted(self.get(place.source, place.shard).offsets, place)

    def wanted(self, offsets: ShardOffsets, place: Place) -> list[Member]:
        """As `members`, where the offsets are at hand."""
        wanted = self._extensions[place.source]
        members = offsets.members(place.index)
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
        return _OpenShard(path, file, offsets)


class ShardReader:
    """Random access to the samples of indexed shards; safe to use after a fork and to send to another process.

    Local shards are read where they lie. Of remote ones those samples that were expected are fetched in the background,
    a window in few requests (`read_ahead.py`), others when they are read; a cache keeps whole shards
    (`shard_cache.py`). One thread at a time may call it.

    Args:
        indexes: the shards of each source.
        extensions: members to read of each source; None reads all.
        remote: timeout, retries and connections.
        cache: where remote shards are kept; None fetches only what is read.

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
        self._start_process()

    def _start_process(self) -> None:
        """Makes what no two processes can share: descriptors and threads."""
        cache = None
        if self._cache is not None:
            stall_s = (self._remote.retries + 1) * (self._remote.timeout_s + LONGEST_WAIT_S)
            cache = ShardCache(self._cache.folder, max_bytes=int(self._cache.max_gb * 1e9), stall_s=stall_s)
        self._open = _OpenShards(self._indexes, extensions=self._extensions, remote=self._remote, cache=cache)
        self._read_ahead = ReadAhead(self._open, connections=self._remote.connections)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None, "_read_ahead": None, "_process": None}

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._start_process()

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fetched ahead and not read yet."""
        self._follow_fork()
        return self._read_ahead.buffered_bytes

    def expect(self, places: Sequence[Place], *, until: int) -> None:
        """Fetches samples that will be read soon in the background; local ones are left alone.

        Args:
            places: each will be read once; one that is not read stands in memory until it is forgotten.
            until: the last batch that may read them.
        """
        self._follow_fork()
        self._read_ahead.expect([place for place in places if not is_local(self._path(place))], until=until)

    def forget(self, before: int) -> None:
        """Frees what was expected until an earlier batch than `before`."""
        self._follow_fork()
        self._read_ahead.forget(before)

    def read(self, place: Place) -> RawSample:
        """The sample at `place`.

        Raises:
            BadSampleError: the shard ends before the sample does.
            RunError: the storage failed after all retries, or the shard is not the one that was indexed.
        """
        self._follow_fork()
        if place.source not in self.remote_sources:
            return self._guarded(place, lambda: self._read(place))
        start = time.perf_counter()
        sample = self._guarded(place, lambda: self._read(place))
        self.wait_s += time.perf_counter() - start
        return sample

    def name(self, place: Place) -> SampleName:
        """What the sample at `place` is called.

        Raises:
            RunError: as `read`.
        """
        self._follow_fork()
        shard = self._guarded(place, lambda: self._open.get(place.source, place.shard))
        members = tuple(member.extension for member in shard.offsets.members(place.index))
        return SampleName(shard.path, shard.offsets.key(place.index), members)

    def _path(self, place: Place) -> str:
        return self._indexes[place.source].paths[place.shard]

    def _read(self, place: Place) -> RawSample:
        contents = self._read_ahead.take(place)
        path, file, offsets = self._open.get(place.source, place.shard)
        members = self._open.wanted(offsets, place)
        if contents is None and isinstance(file, LocalFile):
            contents = [file.read_at(member.offset, member.size) for member in members]
        elif contents is None:
            contents = read_members(file, members)  # one request, not one per member
        fields = {}
        for member, content in zip(members, contents, strict=True):
            if len(content) < member.size:
                raise BadSampleError(TRUNCATED)
            fields[member.extension] = content
        return RawSample(path, offsets.key(place.index), fields)

    def _guarded(self, place: Place, action: Callable[[], T]) -> T:
        """The result of `action`, an OSError as a RunError.

        Tries three times where the shard is local, as network file systems fail too; others have their own retries.
        """
        for attempt in itertools.count():
            try:
                return action()
            except OSError as error:
                path = self._path(place)
                waits = _RETRY_AFTER_S if is_local(path) else ()
                if attempt == len(waits):
                    tries = f" after {attempt + 1} tries" if waits else ""
                    raise RunError(
                        f"shard {path} cannot be read{tries}: {error}; {hint(error)}, then run the same command again"
                    ) from error
                log.warning("shard %s: %s; trying again in %s s", path, error, waits[attempt])
            self._open.drop(place.source, place.shard)
            time.sleep(waits[attempt])
        raise AssertionError("unreachable")
