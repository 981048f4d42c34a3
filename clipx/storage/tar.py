"""Tar files of samples: where each sample's members lie, by the headers alone.

The parser is our own: `tarfile` builds an object per member, and gives up at damage before which all samples are good.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from zlib import adler32

from clipx.storage.files import RangeReader

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_ADLER = 65521
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip and zstd begin so


class NotTarError(Exception):
    """The file does not begin as an uncompressed tar does; the message says what to do."""


class CutMemberError(Exception):
    """The shard ends before one of a sample's members does; the message says how much is missing."""


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

    def key(self, index: int) -> str:
        """The name of sample `index`, with its folder inside the tar."""
        return self.keys[index].decode("utf-8", "backslashreplace")

    def members(self, index: int) -> list[Member]:
        """The files of sample `index` in the tar's order."""
        stop = self.first_member[index + 1] if index + 1 < len(self.keys) else len(self.offsets)
        return [
            Member(self._extensions[self.extensions[i]], self.offsets[i], self.sizes[i])
            for i in range(self.first_member[index], stop)
        ]

    @cached_property
    def _extensions(self) -> list[str]:
        return [name.decode("utf-8", "backslashreplace") for name in self.extension_ids]

    def add(self, name: bytes, offset: int, size: int) -> None:
        """Takes the next member; a name without key or extension makes no sample, as in webdataset."""
        folder, slash, base = name.rpartition(b"/")
        stem, dot, extension = base.partition(b".")
        if not stem or not dot:
            return
        key = folder + slash + stem
        extension_id = self.extension_ids.setdefault(extension.lower(), len(self.extension_ids))
        same_sample = bool(self.keys) and self.keys[-1] == key
        if not same_sample or extension_id in self.extensions[self.first_member[-1] :]:
            self.keys.append(key)
            self.first_member.append(len(self.offsets))
        self.offsets.append(offset)
        self.sizes.append(size)
        self.extensions.append(extension_id)


def scan_tar(file: RangeReader) -> TarScan:
    """Lists the samples of a tar, reading its headers only.

    A cut or damaged file gives every sample up to the damage, the one that it hits included (reading that one fails),
    and says so in `damage`.

    Raises:
        NotTarError: the file is none from its first byte on.
        OSError: it cannot be read.
    """
    scan = TarScan()
    try:
        for name, offset, size in _walk(file):
            scan.add(name, offset, size)
    except _DamageError as error:
        scan.damage = str(error)
    except ValueError:
        scan.damage = "has a header with a malformed number"
    return scan


def read_members(file: RangeReader, members: Sequence[Member]) -> dict[str, bytes]:
    """The contents of a sample's members by extension.

    Raises:
        CutMemberError: the shard ends inside one of them.
        OSError: it cannot be read.
    """
    fields = {}
    for extension, offset, size in members:
        fields[extension] = data = file.read_at(offset, size)
        if len(data) < size:
            raise CutMemberError(f"{size - len(data)} bytes of its {extension} are missing")
    return fields


class _DamageError(Exception):
    """The tar breaks off; the message says where."""


def _walk(file: RangeReader) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, offset of the data, size) of each regular file."""
    position = 0
    name: bytes | None = None  # from a GNU or pax record, for the member after it
    size: int | None = None
    while (header := file.read_at(position, _BLOCK)) != _ZEROS:
        _check_header(header, position, file.size)
        data, length, kind = position + _BLOCK, _parse_number(header[124:136]), header[156:157]
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
    fault = "ends inside" if len(header) < _BLOCK else "has a broken"
    raise _DamageError(f"{fault} header at byte {position} of {file_size}")


def _parse_number(data: bytes) -> int:
    """A numeric field: octal digits, or big-endian binary if the first bit is set (sizes from 8 GiB on)."""
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
