"""Reads single samples out of shards by their place, with the offsets that the sidecars hold."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from clipx.data.files import RangeReader, open_ranges
from clipx.data.index import ShardIndex
from clipx.data.sidecar import Sidecar
from clipx.errors import RunError

_MAX_OPEN_SHARDS = 192  # two descriptors each (shard, sidecar): well below the usual limit of 1024
_RETRY_AFTER_S = (0.1, 1.0)

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
    file: RangeReader
    sidecar: Sidecar


class ShardReader:
    """Random access to the samples of indexed shards; safe to use after a fork and to send to another process.

    Args:
        index: the shards.
        extensions: members to read; None reads all.
    """

    def __init__(self, index: ShardIndex, *, extensions: Collection[str] | None = None) -> None:
        self._index = index
        self._extensions = None if extensions is None else frozenset(extensions)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, shard: int, index: int) -> RawSample:
        """Sample `index` of the shard with ordinal `shard`.

        Raises:
            BadSampleError: the shard ends before the sample does.
            RunError: the storage failed three times, or the shard is not the one that was indexed.
        """
        return self._with_retries(shard, lambda: self._read(shard, index))

    def name(self, shard: int, index: int) -> SampleName:
        """What sample `index` of a shard is called; reads the sidecar only.

        Raises:
            RunError: as `read`.
        """
        sidecar = self._with_retries(shard, lambda: self._shard(shard)).sidecar
        members = tuple(member.extension for member in sidecar.members(index))
        return SampleName(self._index.paths[shard], sidecar.key(index), members)

    def _with_retries(self, shard: int, action: Callable[[], T]) -> T:
        for retry_after_s in _RETRY_AFTER_S:
            try:
                return action()
            except OSError as error:
                log.warning("shard %s: %s; trying again in %s s", self._index.paths[shard], error, retry_after_s)
                self._close(shard)
                time.sleep(retry_after_s)
        try:
            return action()
        except OSError as error:
            raise RunError(
                f"shard {self._index.paths[shard]} cannot be read after {len(_RETRY_AFTER_S) + 1} tries: {error}; "
                "check the storage, then run the same command again"
            ) from error

    def _read(self, shard: int, index: int) -> RawSample:
        file, sidecar = self._shard(shard)
        fields = {}
        for extension, offset, size in sidecar.members(index):
            if self._extensions is None or extension in self._extensions:
                fields[extension] = file.read_at(offset, size)
                if len(fields[extension]) < size:
                    raise BadSampleError("shard truncated")
        return RawSample(self._index.paths[shard], sidecar.key(index), fields)

    def _shard(self, shard: int) -> _OpenShard:
        if self._process != os.getpid():  # remote connections do not survive a fork
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].file.close()
            self._open[shard] = self._open_shard(shard)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_shard(self, shard: int) -> _OpenShard:
        path, sidecar_path = self._index.paths[shard], self._index.sidecar_path(shard)
        try:
            sidecar = Sidecar(sidecar_path)
        except ValueError as error:
            raise RunError(f"{sidecar_path} is damaged ({error}); delete it and run the same command again") from error
        file = open_ranges(path)
        indexed = (sidecar.shard.size, sidecar.num_samples)
        if indexed != (file.size, self._index.counts[shard]):
            file.close()
            raise RunError(f"shard {path} changed after it was indexed; leave shards alone while a run reads them")
        return _OpenShard(file, sidecar)

    def _close(self, shard: int) -> None:
        if shard in self._open:
            self._open.pop(shard).file.close()
