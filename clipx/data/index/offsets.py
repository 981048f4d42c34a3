"""The sidecar of one shard: key, extension, offset and size of every member, so that a sample is one pread per member.

`scan_tar` reads a tar's headers and seeks over its data (an own parser: `tarfile` builds an object per member);
`sidecar_parts` makes of the result one flat file that `Sidecar` maps into memory, so that the loader processes of a
machine share one copy of it.

Layout of the file, little-endian: `_HEADER`, then int64 first_member (N+1), offset (M), size (M), key_end (N+1), uint64
hash (N or 0), uint32 extension (M), the keys, the extensions' names joined by NUL, and uint8 reason (N or 0); N
samples, M members. A filtered sidecar holds all samples; the reason of those that pass is 0, only they are counted.
"""

import mmap
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import adler32

import numpy as np

from clipx.storage.files import FileState, RangeReader

SUFFIX = ".clipx-index"
_MAGIC = b"CLIPXIX2"
# magic, samples N, members M, bytes of keys and of extensions' names, hashes, the filter, the shard's size and mtime_ns
_HEADER = Struct("<8s8q")
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_ADLER = 65521
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip and zstd begin so


class NotTarError(Exception):
    """The file does not begin as an uncompressed tar does; the message says how that is mended."""


class Member(NamedTuple):
    """Where the content of one file of a sample lies in its shard."""

    extension: str
    offset: int
    size: int


@dataclass
class TarScan:
    """The samples of a tar in their order; a sample is a run of members with equal key and different extensions."""

    keys: list[bytes] = field(default_factory=list)
    first_member: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    extensions: "array[int]" = field(default_factory=lambda: array("I"))
    extension_ids: dict[bytes, int] = field(default_factory=dict)
    damage: str | None = None
    """What is wrong with the end of the file, or None."""

    def add(self, name: bytes, offset: int, size: int) -> None:
        """Takes the next member; a name without key or extension makes no sample, as in webdataset."""
        folder, slash, base = name.rpartition(b"/")
        stem, dot, extension = base.partition(b".")
        if not stem or not dot:
            return
        key = folder + slash + stem
        number = self.extension_ids.setdefault(extension.lower(), len(self.extension_ids))
        same_sample = bool(self.keys) and self.keys[-1] == key
        if not same_sample or number in self.extensions[self.first_member[-1] :]:
            self.keys.append(key)
            self.first_member.append(len(self.offsets))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.extensions.append(number)


def scan_tar(file: RangeReader) -> TarScan:
    """Lists the samples of a tar, reading its headers only.

    A cut or damaged file gives every sample up to the damage, the one that it hits included (reading that one fails),
    and says so in `damage`.

    Raises:
        NotTarError: when the file is none from its first byte on.
        OSError: when it cannot be read.
    """
    scan = TarScan()
    try:
        for name, offset, size in _members(file):
            scan.add(name, offset, size)
    except _DamageError as error:
        scan.damage = str(error)
    except ValueError:
        scan.damage = "has a header with a malformed number"
    return scan


class _DamageError(Exception):
    """The tar breaks off; the message says where."""


def _members(file: RangeReader) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, offset of the data, size) of each regular file."""
    position = 0
    name: bytes | None = None  # from a GNU or pax record, for the member after it
    size: int | None = None
    while (header := file.read_at(position, _BLOCK)) != _ZEROS:
        _check_header(header, position, file.size)
        data, length, kind = position + _BLOCK, _number(header[124:136]), header[156:157]
        if kind == b"L":
            name = file.read_at(data, length).split(b"\0", 1)[0]
        elif kind == b"x":
            records = _pax_records(file.read_at(data, length))
            name = records.get(b"path", name)
            size = int(records[b"size"]) if b"size" in records else None
        elif kind not in b"Kg":
            length = length if size is None else size
            if kind in b"0\x007":
                yield name or _header_name(header), data, length
            name = size = None
        position = data + -(-length // _BLOCK) * _BLOCK
        if data + length > file.size:
            raise _DamageError(f"ends inside a member, {data + length - file.size} bytes short")


def _check_header(header: bytes, position: int, file_size: int) -> None:
    if not header and position == 0:
        raise _DamageError("has no bytes")
    if not header:
        raise _DamageError("ends without a tar's end mark")
    if len(header) == _BLOCK:
        stored = header[148:156].strip(b"\0 ")
        # Adler-32 ends with 1 + the sum of the bytes modulo 65521, and is ten times as fast as `sum`
        if (
            stored.isdigit()
            and adler32(header) & 0xFFFF == (1 + int(stored, 8) + sum(header[148:156]) - 8 * ord(" ")) % _ADLER
        ):
            return
    if position == 0:
        if header.startswith(_COMPRESSED):
            raise NotTarError("is compressed; unpack it to a plain tar")
        raise NotTarError("is no tar file; leave it out, or make it again")
    where = "ends inside" if len(header) < _BLOCK else "has a broken"
    raise _DamageError(f"{where} header at byte {position} of {file_size}")


def _number(data: bytes) -> int:
    """A numeric field: octal digits, or big-endian binary where the first bit is set (sizes from 8 GiB on)."""
    if data[0] & 0x80:
        return int.from_bytes(data[1:], "big")
    return int(data.strip(b"\0 ") or b"0", 8)


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The `length key=value` lines of a pax header (POSIX.1-2001, pax, "extended header")."""
    records, position = {}, 0
    while (space := data.find(b" ", position)) > 0 and data[position:space].isdigit():
        end = position + int(data[position:space])
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        records[key] = value
        position = max(end, space + 1)
    return records


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a filter says of the N samples of a shard."""

    filter_id: int
    """Names the filter; 0 is none."""
    reasons: np.ndarray
    """uint8 (N,): 0 passes, else the number of the reason, from 1 on."""
    hashes: np.ndarray | None
    """uint64 (N,), equal for samples that are duplicates; only where these are looked for."""


def sidecar_parts(scan: TarScan, state: FileState, verdict: Verdict | None = None) -> list[bytes]:
    """The parts of the sidecar file of a shard that was in `state`."""
    keys, names = b"".join(scan.keys), b"\0".join(scan.extension_ids)
    hashes = np.zeros(0, np.uint64) if verdict is None or verdict.hashes is None else verdict.hashes
    filter_id = 0 if verdict is None else verdict.filter_id
    lengths = (len(scan.keys), len(scan.offsets), len(keys), len(names), len(hashes))
    return [
        _HEADER.pack(_MAGIC, *lengths, filter_id, *state),
        np.array([*scan.first_member, len(scan.offsets)], dtype="<i8").tobytes(),
        np.array(scan.offsets, dtype="<i8").tobytes(),
        np.array(scan.sizes, dtype="<i8").tobytes(),
        np.array([0, *accumulate(map(len, scan.keys))], dtype="<i8").tobytes(),
        hashes.astype("<u8").tobytes(),
        np.array(scan.extensions, dtype="<u4").tobytes(),
        keys,
        names,
        b"" if verdict is None else verdict.reasons.astype(np.uint8).tobytes(),
    ]


class Sidecar:
    """The members of a shard's samples; of a filtered one those of the samples that pass.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no sidecar, or of another version.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("no bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = self._map[: _HEADER.size]
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError("not a sidecar of this version")
        scanned, members, key_bytes, name_bytes, hashes, self.filter_id, *state = _HEADER.unpack(header)[1:]
        self.shard = FileState(*state)
        counts = (scanned + 1, members, members, scanned + 1, hashes)
        ends = list(accumulate((8 * count for count in counts), initial=_HEADER.size))
        self._keys_from = ends[-1] + 4 * members
        self._reasons_from = self._keys_from + key_bytes + name_bytes
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
        self._passing = np.flatnonzero(self.reasons == 0) if self.filter_id else None
        self.num_samples = scanned if self._passing is None else len(self._passing)

    @property
    def reasons(self) -> np.ndarray:
        """uint8 (N,) of all samples, 0 for those that pass; (0,) without a filter."""
        return np.frombuffer(self._map, np.uint8, len(self._map) - self._reasons_from, self._reasons_from)

    def with_reasons(self, reasons: np.ndarray) -> list[bytes]:
        """The parts of a sidecar file that differs in `reasons` alone."""
        return [self._map[: self._reasons_from], reasons.astype(np.uint8).tobytes()]

    def key(self, index: int) -> str:
        """The name of sample `index`, with its folder inside the tar."""
        index = self._scanned(index)
        start, end = (self._keys_from + int(self._key_end[index + side]) for side in (0, 1))
        return self._map[start:end].decode("utf-8", "backslashreplace")

    def members(self, index: int) -> list[Member]:
        """The files of sample `index` in the tar's order."""
        index = self._scanned(index)
        return [
            Member(self._names[self._extension[i]], int(self._offset[i]), int(self._size[i]))
            for i in range(self._first_member[index], self._first_member[index + 1])
        ]

    def _scanned(self, index: int) -> int:
        """The place among all samples of the shard."""
        return index if self._passing is None else int(self._passing[index])
