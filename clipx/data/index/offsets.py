"""The shard offsets: key, extension, offset and size of every member, so that a sample is one pread per member.

`offsets_to_bytes` makes one flat file of a tar's scan, which `ShardOffsets` maps into memory, so that the loader
processes of a machine share one copy of it.

Layout of the file, little-endian: `_HEADER`, the CRC-32 of all other bytes, then int64 first_member (N+1), offset (M),
size (M), key_end (N+1), uint64 hash (N or 0), uint32 extension (M), the keys, the extensions' names joined by NUL, and
uint8 reason (N or 0); N samples, M members. The file of a filtered shard holds all samples; the reason of those that
pass is 0, only they are counted.

A file is trusted as little as the shard it lies beside: its checksum and all its numbers are looked at when it is
opened. One of the version before, which has no checksum, is made again. If it is filtered, that would mean to read all
samples; then it is opened, and must be compared with the shard's headers (`vouched`).
"""

import mmap
import os
import zlib
from itertools import accumulate
from pathlib import Path
from struct import Struct

import numpy as np

from clipx.data.filters import FilterResult
from clipx.storage.files import FileState, open_regular
from clipx.storage.tar import Member, TarScan
from clipx.storage.tar_headers import MAX_SIZE

SUFFIX = ".clipx-index"
_MAGIC, _OLD_MAGIC = b"CLIPXIX3", b"CLIPXIX2"
# magic, samples N, members M, bytes of keys and of extensions' names, hashes, the filter, the shard's size and mtime_ns
_HEADER = Struct("<8s8q")
_CHECKSUM = Struct("<Q")


def offsets_to_bytes(scan: TarScan, state: FileState, result: FilterResult | None = None) -> bytes:
    """The offsets file of a shard that was in `state`."""
    keys, names = b"".join(scan.keys), b"\0".join(scan.extension_ids)
    hashes = np.zeros(0, np.uint64) if result is None or result.hashes is None else result.hashes
    filter_id = 0 if result is None else result.filter_id
    lengths = (len(scan.keys), len(scan.offsets), len(keys), len(names), len(hashes))
    first_member, key_end = [*scan.first_member, len(scan.offsets)], [0, *accumulate(map(len, scan.keys))]
    columns = [np.array(column, "<i8") for column in (first_member, scan.offsets, scan.sizes, key_end)]
    columns += [hashes.astype("<u8"), np.array(scan.extensions, "<u4")]
    reasons = b"" if result is None else result.reasons.astype(np.uint8).tobytes()
    header = _HEADER.pack(_MAGIC, *lengths, filter_id, *state)
    return _with_checksum(header, b"".join([*(column.tobytes() for column in columns), keys, names, reasons]))


def _with_checksum(header: bytes, body: bytes) -> bytes:
    return header + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(header))) + body


class ShardOffsets:
    """The members of a shard's samples; of a filtered one those of the samples that pass.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no offsets, or those of another version.
    """

    def __init__(self, path: Path) -> None:
        with open(open_regular(path), "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("no bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._header, self._body_from = self._checked_header()
        self.vouched = self._header.startswith(_MAGIC)
        """Whether it has a checksum."""
        scanned, members, key_bytes, name_bytes, hashes, self.filter_id, *state = _HEADER.unpack(self._header)[1:]
        self.shard = FileState(*state)
        counts = (scanned + 1, members, members, scanned + 1, hashes)
        ends = list(accumulate((8 * count for count in counts), initial=self._body_from))
        self._keys_from = ends[-1] + 4 * members
        self._reasons_from = self._keys_from + key_bytes + name_bytes
        if min(scanned, members, key_bytes, name_bytes, hashes, self.shard.size) < 0 or hashes not in (0, scanned):
            raise ValueError("a number is out of bounds")
        if len(self._map) != self._reasons_from + (scanned if self.filter_id else 0):
            raise ValueError("wrong length")
        self._first_member, self._offset, self._size, self._key_end = (
            np.frombuffer(self._map, "<i8", count, start) for count, start in zip(counts[:4], ends, strict=False)
        )
        self.hashes = np.frombuffer(self._map, "<u8", hashes, ends[4])
        """uint64 (N,) of all samples, or (0,)."""
        self._extension = np.frombuffer(self._map, "<u4", members, ends[-1])
        names = self._map[self._keys_from + key_bytes : self._reasons_from]
        self._names = [name.decode("utf-8", "backslashreplace") for name in names.split(b"\0")]
        self._check_numbers(key_bytes)
        self._passing = np.flatnonzero(self.reasons == 0) if self.filter_id else None
        self.num_samples = scanned if self._passing is None else len(self._passing)

    def _checked_header(self) -> tuple[bytes, int]:
        """The header, and where what follows it begins."""
        header, body = self._map[: _HEADER.size], _HEADER.size + _CHECKSUM.size
        if len(self._map) >= _HEADER.size and header.startswith(_OLD_MAGIC) and _HEADER.unpack(header)[6]:
            return header, _HEADER.size
        if len(self._map) < body or not header.startswith(_MAGIC):
            raise ValueError("not offsets of this version")
        (checksum,) = _CHECKSUM.unpack(self._map[_HEADER.size : body])
        if checksum != zlib.crc32(memoryview(self._map)[body:], zlib.crc32(header)):
            raise ValueError("the checksum is wrong")
        return header, body

    def _check_numbers(self, key_bytes: int) -> None:
        """Looks whether all places lie inside; a member may end behind its shard, which is cut then."""
        ends = ((self._first_member, len(self._offset)), (self._key_end, key_bytes))
        if not (
            all(column[0] == 0 and column[-1] == last and (np.diff(column) >= 0).all() for column, last in ends)
            and (self._offset >= 0).all()
            and (self._offset <= self.shard.size).all()
            and (self._size >= 0).all()
            and (self._size <= MAX_SIZE).all()
            and (self._extension < len(self._names)).all()
        ):
            raise ValueError("a number is out of bounds")

    @property
    def reasons(self) -> np.ndarray:
        """uint8 (N,) of all samples, 0 for those that pass; (0,) without a filter."""
        return np.frombuffer(self._map, np.uint8, len(self._map) - self._reasons_from, self._reasons_from)

    def to_bytes(self, reasons: np.ndarray) -> bytes:
        """The file with other reasons, uint8 (N,)."""
        body = self._map[self._body_from : self._reasons_from] + reasons.astype(np.uint8).tobytes()
        return _with_checksum(self._header, body) if self.vouched else self._header + body

    def is_as(self, content: bytes) -> bool:
        """Whether it holds what the file `content`, of this version, does."""
        header, body = self._header[len(_MAGIC) :], self._map[self._body_from :]
        return header == content[len(_MAGIC) : _HEADER.size] and body == content[_HEADER.size + _CHECKSUM.size :]

    def key(self, index: int) -> str:
        """The name of sample `index`, with its folder inside the tar."""
        index = self._scanned(index)
        start, end = (self._keys_from + int(self._key_end[index + side]) for side in (0, 1))
        return self._map[start:end].decode("utf-8", "backslashreplace")

    def members(self, index: int) -> list[Member]:
        """The files of sample `index` in the tar's order."""
        index = self._scanned(index)
        rows = slice(self._first_member[index], self._first_member[index + 1])
        columns = (self._extension[rows].tolist(), self._offset[rows].tolist(), self._size[rows].tolist())
        return [Member(self._names[extension], offset, size) for extension, offset, size in zip(*columns, strict=True)]

    def _scanned(self, index: int) -> int:
        """The place among all samples of the shard."""
        return index if self._passing is None else int(self._passing[index])
