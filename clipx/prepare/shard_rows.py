"""The samples of shards that exist, to be put into others."""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from clipx.data.index.offsets import Sidecar
from clipx.data.index.shard_index import ShardIndex
from clipx.errors import RunError
from clipx.prepare.rows import LeftOutError, StoredSample
from clipx.storage.files import RangeReader, open_ranges

_MAX_OPEN_SHARDS = 64


class _OpenShard(NamedTuple):
    file: RangeReader
    sidecar: Sidecar


class ShardRows:
    """The samples of indexed shards in the index's order, all members of each.

    Args:
        index: of the shards; what its filter leaves out is no row.
    """

    block_rows = 1

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._ends_S = np.cumsum(index.counts)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __len__(self) -> int:
        return self._index.num_samples

    def read(self, row: int) -> StoredSample:
        """As `Rows.read`.

        Raises:
            RunError: the storage failed.
        """
        shard = int(np.searchsorted(self._ends_S, row, side="right"))
        path, index = self._index.paths[shard], row - int(self._ends_S[shard] - self._index.counts[shard])
        try:
            file, sidecar = self._shard(shard)
            key, members = sidecar.key(index), sidecar.members(index)
            fields = {member.extension: file.read_at(member.offset, member.size) for member in members}
        except OSError as error:
            raise RunError(f"shard {path} cannot be read: {error}; check the storage and start again") from error
        if any(len(fields[member.extension]) < member.size for member in members):
            raise LeftOutError("truncated shard", f"{path} {key}")
        return StoredSample(f"{path} {key}", key, fields)

    def _shard(self, shard: int) -> _OpenShard:
        if shard not in self._open:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].file.close()
            self._open[shard] = _OpenShard(open_ranges(self._index.paths[shard]), self._index.sidecar(shard))
        self._open.move_to_end(shard)
        return self._open[shard]

    def identity(self) -> list[object]:
        """As `Rows.identity`."""
        return [self._index.num_samples, self._index.fingerprint()]
