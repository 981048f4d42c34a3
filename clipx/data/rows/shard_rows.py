"""The samples of shards that exist, to be put into others."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from clipx.data.index.offsets import ShardOffsets
from clipx.data.index.shard_index import ShardIndex
from clipx.data.rows.row import RECORD, LeftOutError, Rows, StoredSample, fields_in
from clipx.data.rows.values import Record
from clipx.errors import RunError
from clipx.storage.files import RangeReader, file_state, is_local, open_ranges
from clipx.storage.tar import CutMemberError, LargeSampleError, read_members

_MAX_OPEN_SHARDS = 64


class _OpenShard(NamedTuple):
    file: RangeReader
    offsets: ShardOffsets


class ShardRows(Rows):
    """The samples of indexed shards in the index's order, all members of each; what its filter leaves out is no row."""

    uses = ("--index",)

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __len__(self) -> int:
        return self._index.num_samples

    def read(self, row: int) -> StoredSample:
        """The sample of this number.

        Raises:
            LeftOutError: it is cut, or too large.
            RunError: the storage failed.
        """
        return self._read(row)

    def _read(self, row: int, *, only: str | None = None) -> StoredSample:
        """The sample of this number with all of its members, or with one if it has it."""
        shard, place = self._index.locate(row)
        path = self._index.paths[shard]
        try:
            file, offsets = self._shard(shard)
            key = offsets.key(place)
            members = [member for member in offsets.members(place) if only is None or member.extension == only]
            return StoredSample(f"{path} {key}", key, read_members(file, members))
        except CutMemberError as error:
            raise LeftOutError("truncated shard", f"{path} {key}", str(error)) from error
        except LargeSampleError as error:
            raise LeftOutError("unreadable row", f"{path} {key}", str(error)) from error
        except OSError as error:
            raise RunError(f"shard {path} cannot be read: {error}; check the storage and start again") from error

    def records(self) -> Iterator[Record]:
        """See `Rows.records`; of each sample only that member is read."""
        for row in range(len(self)):
            try:
                yield fields_in(self._read(row, only=RECORD))
            except LeftOutError:
                yield {}

    def _shard(self, shard: int) -> _OpenShard:
        if shard not in self._open:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].file.close()
            self._open[shard] = _OpenShard(open_ranges(self._index.paths[shard]), self._index.offsets(shard))
        self._open.move_to_end(shard)
        return self._open[shard]

    def shards(self) -> list[str]:
        """See `Rows.shards`."""
        return list(self._index.paths)

    def identity(self) -> list[object]:
        """Changes when the shards do."""
        states = [file_state(path) for path in self._index.paths if is_local(path)]
        return [self._index.num_samples, self._index.fingerprint(), *states]
