"""The counts of one folder's shards in one flat file, so that half a million of them are read in milliseconds.

Layout, little-endian: `_HEADER`, a JSON object {"shards": N, "width": W, "filter": TEXT, "reasons": [R texts]}, then
names (N, W) bytes padded by NUL in ascending order, int64 count (N), size (N), mtime_ns (N), uint8 origin (N), and
int32 left_out (N, R). The checksum is that of everything after the header.
"""

import json
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct

import numpy as np

from clipx.data.index.shard_paths import found_rows

_MAGIC = b"CLIPXCAT"
_VERSION = 1
_HEADER = Struct("<8sIIq")  # magic, version, CRC-32, bytes of the JSON object


class Origin(IntEnum):
    """Where a count is from."""

    SCAN = 0
    STATS = 1
    """img2dataset's NNNNN_stats.json."""
    SIZES = 2
    """sizes.json of the folder."""

    def file_of(self, shard_name: str) -> str:
        """What to name as the source of the count of a shard."""
        match self:
            case Origin.SCAN:
                return "clipx data index"
            case Origin.STATS:
                return shard_name.removesuffix(".tar") + "_stats.json"
            case Origin.SIZES:
                return "sizes.json"


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known of N shards."""

    names: np.ndarray
    """bytes (N,)."""
    counts: np.ndarray
    """int64 (N,), samples; of a filtered index those that pass."""
    sizes: np.ndarray
    """int64 (N,), bytes of the shard; 0 where unknown."""
    mtimes: np.ndarray
    """int64 (N,), nanoseconds; 0 where unknown."""
    origins: np.ndarray
    """uint8 (N,), `Origin`."""
    left_out: np.ndarray
    """int32 (N, R), samples that do not pass, per reason."""

    def take(self, rows: np.ndarray) -> "Rows":
        """The shards at `rows`."""
        columns = (self.names, self.counts, self.sizes, self.mtimes, self.origins, self.left_out)
        return Rows(*(column[rows] for column in columns))


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The shards of a folder, their names in ascending order, and the filter that they are counted with."""

    rows: Rows
    filter: str = ""
    reasons: tuple[str, ...] = ()

    @classmethod
    def empty(cls, *, filter: str = "", reasons: tuple[str, ...] = ()) -> "Catalogue":
        """No shards."""
        none = np.zeros(0, np.int64)
        rows = Rows(np.zeros(0, "S1"), none, none, none, none.astype(np.uint8), np.zeros((0, len(reasons)), np.int32))
        return cls(rows, filter, reasons)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Catalogue":
        """Reads what `to_bytes` made; the arrays are views of `data`.

        Raises:
            ValueError: it is none, damaged, or of another version.
        """
        if len(data) < _HEADER.size:
            raise ValueError("too short")
        magic, version, checksum, length = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError("not a catalogue of this version")
        if zlib.crc32(memoryview(data)[_HEADER.size :]) != checksum:
            raise ValueError("the checksum is wrong")
        start = _HEADER.size + length
        about = json.loads(data[_HEADER.size : start])
        num_shards, reasons = about["shards"], tuple(about["reasons"])
        columns = []
        dtypes = (f"S{about['width']}", "<i8", "<i8", "<i8", "u1", "<i4")
        for dtype, width in zip(dtypes, (1, 1, 1, 1, 1, len(reasons)), strict=True):
            columns.append(np.frombuffer(data, dtype, num_shards * width, start))
            start += columns[-1].nbytes
        columns[-1] = columns[-1].reshape(num_shards, len(reasons))
        return cls(Rows(*columns), about["filter"], reasons)

    def to_bytes(self) -> list[bytes]:
        """The parts of the file."""
        rows = self.rows
        about = {
            "shards": len(rows.names),
            "width": rows.names.dtype.itemsize,
            "filter": self.filter,
            "reasons": self.reasons,
        }
        text = json.dumps(about).encode()
        columns = (rows.counts, rows.sizes, rows.mtimes)
        body = [
            text,
            rows.names.tobytes(),
            *(column.astype("<i8").tobytes() for column in columns),
            rows.origins.astype("u1").tobytes(),
            rows.left_out.astype("<i4").tobytes(),
        ]
        checksum = 0
        for part in body:
            checksum = zlib.crc32(part, checksum)
        return [_HEADER.pack(_MAGIC, _VERSION, checksum, len(text)), *body]

    def find(self, names: np.ndarray) -> np.ndarray:
        """int64 (M,): the rows of shards by name, -1 where there is none."""
        return found_rows(self.rows.names, names)

    def updated(self, new: Rows) -> "Catalogue":
        """With `new` in place of rows of equal names."""
        old = self.rows.take(np.flatnonzero(found_rows(np.sort(new.names), self.rows.names) < 0))
        fields = [(getattr(old, name), getattr(new, name)) for name in Rows.__dataclass_fields__]
        together = Rows(*(np.concatenate(pair) for pair in fields))
        return replace(self, rows=together.take(np.argsort(together.names, kind="stable")))
