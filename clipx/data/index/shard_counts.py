"""The shard counts of one folder: a plain `np.savez` file, from which half a million shards are read in milliseconds.

It holds `rows`, one per shard in ascending order of the names with the columns of `row_dtype`, and the texts `filter`
and `reasons`. Files of the time before that, a header and the columns one after the other, are still read.
"""

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from clipx.data.index.shard_paths import found_rows

MAX_COUNT = 1 << 40
"""Of samples in a shard: those of a million shards still have a sum."""
# what numpy and zipfile raise for bytes that are no such file, besides ValueError
_BROKEN: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError)
_BROKEN += (RuntimeError, TypeError, AttributeError, MemoryError, OverflowError, OSError)
_OLD_MAGIC, _OLD_HEADER = (
    b"CLIPXCAT\1\0\0\0",
    struct.Struct("<12sIq"),
)  # magic and version, CRC-32, bytes of a JSON object


class CountSource(IntEnum):
    """Where a count is from."""

    SCAN = 0
    STATS = 1
    """img2dataset's NNNNN_stats.json."""
    SIZES = 2
    """sizes.json of the folder."""
    FAULTY_SCAN = 3
    """A scan, which found something wrong or odd."""

    def file_of(self, shard_name: str) -> str:
        """What to name as the source of the count of a shard."""
        stats = shard_name.removesuffix(".tar") + "_stats.json"
        return ("clipx data index", stats, "sizes.json", "clipx data index")[self]


def row_dtype(num_reasons: int, name_bytes: int = 1) -> np.dtype:
    """What is known of a shard."""
    return np.dtype(
        [
            ("name", f"S{name_bytes}"),
            ("count", "<i8"),  # samples; of a filtered index those that pass
            ("size", "<i8"),  # bytes of the shard; 0 if unknown
            ("mtime_ns", "<i8"),  # 0 if unknown
            ("source", "u1"),  # `CountSource` of the count
            ("left_out", "<i4", (num_reasons,)),  # samples that do not pass, per reason
        ]
    )


@dataclass(frozen=True, eq=False)
class ShardCounts:
    """The shards of a folder, and the filter that they are counted with."""

    rows: np.ndarray
    """`row_dtype` (N,), in ascending order of the names."""
    filter: str
    reasons: tuple[str, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardCounts":
        """Reads what `to_bytes` made, or an earlier version did.

        Raises:
            ValueError: `data` is something else, or damaged.
        """
        try:
            counts = cls._from_old(data) if data.startswith(_OLD_MAGIC) else cls._from_zip(data)
        except _BROKEN as error:
            raise ValueError(f"no shard counts: {error}") from error
        counts._check_numbers()
        return counts

    @classmethod
    def _from_zip(cls, data: bytes) -> "ShardCounts":
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(info.file_size for info in packed.infolist()) > len(data):
                raise ValueError("more than there is")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            rows, text, reasons = file["rows"], str(file["filter"]), tuple(file["reasons"].tolist())
        width = rows.dtype["name"].itemsize if rows.ndim == 1 and "name" in (rows.dtype.names or ()) else -1
        if width < 0 or rows.dtype != row_dtype(len(reasons), width):
            raise ValueError("shard counts of another version")
        return cls(rows, text, reasons)

    def _check_numbers(self) -> None:
        """Looks at what a file that fits its checksum can still say wrongly: a stranger may have made it."""
        rows, names = self.rows, self.rows["name"]
        if not (
            (names[1:] > names[:-1]).all()
            and ((rows["count"] >= 0) & (rows["count"] <= MAX_COUNT)).all()
            and (rows["size"] >= 0).all()
            and (rows["source"] < len(CountSource)).all()
            and (rows["left_out"] >= 0).all()
        ):
            raise ValueError("a number is out of bounds")

    @classmethod
    def _from_old(cls, data: bytes) -> "ShardCounts":
        if len(data) < _OLD_HEADER.size:
            raise ValueError("too short")
        _, checksum, length = _OLD_HEADER.unpack_from(data)
        start = _OLD_HEADER.size + length
        if zlib.crc32(memoryview(data)[_OLD_HEADER.size :]) != checksum:
            raise ValueError("the checksum is wrong")
        about = json.loads(data[_OLD_HEADER.size : start])
        rows = np.empty(about["shards"], row_dtype(len(about["reasons"]), about["width"]))
        for name in rows.dtype.names:
            column = np.frombuffer(data, rows.dtype[name].base, rows[name].size, start)
            rows[name] = column.reshape(rows[name].shape)
            start += column.nbytes
        return cls(rows, about["filter"], tuple(about["reasons"]))

    def to_bytes(self) -> bytes:
        """The file."""
        file = io.BytesIO()
        np.savez(file, rows=self.rows, filter=np.array(self.filter), reasons=np.array(self.reasons, np.str_))
        return file.getvalue()

    def find(self, names: np.ndarray) -> np.ndarray:
        """int64 (M,): the rows of shards by name, -1 for those that are absent."""
        return found_rows(self.rows["name"], names)

    def updated(self, new: np.ndarray) -> "ShardCounts":
        """The counts with `new` (`row_dtype` (M,)) in place of rows of equal names."""
        old = self.rows[found_rows(np.sort(new["name"]), self.rows["name"]) < 0]
        rows = np.concatenate([old, new])
        return replace(self, rows=rows[np.argsort(rows["name"], kind="stable")])
