"""The headers of a tar, one after the other: names, places and sizes, in time and memory bounded by the file.

The parser is our own: `tarfile` builds an object per member, and gives up at damage before which all samples are good.
It reads what `tarfile` reads, and so webdataset: where formats differ (which of two extended headers counts, whether a
link has data) it does as that does.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Never
from zlib import adler32

from clipx.storage.files import RangeReader

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_PADDING_READS = 64 << 10, 4 << 20  # a tar's end is padded to 10 KiB, so that the first read nearly always finds it
_ZERO_READ = bytes(_PADDING_READS[1])
_ADLER = 65521
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip and zstd begin so
_MAX_NAME, _MAX_RECORDS = 1 << 16, 16 << 20  # bytes; pax headers of macOS hold resource forks
MAX_SIZE = 1 << 62
"""Of what is stored of a member's size: two of them fit into 64 bits."""
_EXTENDED, _FILE, _FOLDER = b"LKxXg", b"0\x007", b"5"
_LINKS = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "fifo"}
_IN_PIECES = {b"S": "sparse file", b"M": "continued file"}


class NotTarError(Exception):
    """The file does not begin as an uncompressed tar does; the message says what to do."""


class DamageError(Exception):
    """The tar breaks off; the message says where."""


class Entry(NamedTuple):
    """A file of a tar, or what stands in a file's place."""

    name: bytes
    offset: int
    """Of its content."""
    size: int
    """Bytes of its content; the file may end before."""
    kind: str | None
    """What it is instead of a file: `hard link`, `sparse file`, ...; None for a file."""


@dataclass
class _Extended:
    """What extended headers say of the entry after them; of several the first counts, as for `tarfile`."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False

    def take(self, records: dict[bytes, bytes]) -> None:
        """Takes the records of a pax header."""
        if self.name is None:
            self.name = records.get(b"GNU.sparse.name", records.get(b"path"))
        if self.size is None and b"size" in records:
            self.size = _digits(records[b"size"])
        self.sparse = self.sparse or any(key.startswith(b"GNU.sparse.") for key in records)


def walk(file: RangeReader, *, joined: bool = False) -> Iterator[Entry]:
    """Yields the files and links of a tar.

    Args:
        joined: goes on behind the end mark if another tar stands there; without it that is damage.

    Raises:
        NotTarError: the file is none from its first byte on.
        DamageError: the tar breaks off, or there is more behind its end than zeros.
        OSError: it cannot be read.
    """
    position = 0
    while True:
        end = yield from _one_tar(file, position)
        behind = _content_behind(file, end)
        if behind is None:
            return
        if not _is_header(file.read_at(behind, _BLOCK)):
            rest = file.size - behind
            raise DamageError(f"holds {rest} bytes behind its end mark (from byte {behind} on) that are no tar")
        if not joined:
            raise DamageError(
                f"holds another tar behind its end mark (at byte {behind} of {file.size}), as `cat` joins them: join "
                "them with `tar --concatenate`, or let `clipx data check --repair DIR` write the samples of all"
            )
        position = behind


def begins_at(file: RangeReader, offset: int, size: int) -> bool:
    """Whether the header before `offset` is one of a member of `size` bytes; sizes from 8 GiB on are not compared.

    Raises:
        OSError: it cannot be read.
    """
    header = file.read_at(offset - _BLOCK, _BLOCK) if offset >= _BLOCK else b""
    if not _is_header(header) or header[156:157] not in (b"0", b"\0", b"7"):
        return False
    try:
        return size >= 8 << 30 or _parse_number(header[124:136]) in (0, size)  # 0: a pax record has it
    except ValueError:
        return False


def _one_tar(file: RangeReader, position: int) -> Generator[Entry, None, int]:
    """Yields the entries from `position` to the end mark, and returns its place."""
    extended: _Extended | None = None
    while (header := file.read_at(position, _BLOCK)) != _ZEROS:
        if not _is_header(header):
            _refuse_header(header, position, file.size)
        data, kind = position + _BLOCK, header[156:157]
        try:
            size = _parse_number(header[124:136])
            if kind in _EXTENDED:
                extended = extended or _Extended()
                _check_extended(file, kind, data, size)
                _read_extended(file, kind, data, size, extended)
            elif kind == b"0" and extended is None:  # nearly all
                yield Entry(_header_name(header), data, min(size, MAX_SIZE), None)
            else:
                entry, data, size = _entry(file, header, data, size, extended or _Extended())
                if entry is not None:
                    yield entry
                extended = None
        except ValueError as error:
            raise DamageError(f"has a header with {error} at byte {position} of {file.size}") from None
        if data + size > file.size:
            raise DamageError(f"ends inside a member, {data + size - file.size} bytes short")
        position = data + -(-size // _BLOCK) * _BLOCK
    return position


def _entry(
    file: RangeReader, header: bytes, data: int, size: int, extended: _Extended
) -> tuple[Entry | None, int, int]:
    """What a header describes, None if it is no matter of samples; and where its data begin and how many they are."""
    kind, name = header[156:157], extended.name or _header_name(header)
    size = size if extended.size is None else extended.size
    if kind in _LINKS or kind == _FOLDER or (kind == b"\0" and name.endswith(b"/")):
        return (Entry(name, data, 0, _LINKS[kind]) if kind in _LINKS else None), data, 0
    other = "sparse file" if extended.sparse else _IN_PIECES.get(kind)
    if kind == b"S":
        more, at = header[482], data - _BLOCK
        while more:  # tables of the file's pieces, a block each
            at += _BLOCK
            block = file.read_at(at, _BLOCK)
            more = block[504] if len(block) == _BLOCK else 0
        data = at + _BLOCK
    is_entry = kind in _FILE or other is not None
    return (Entry(name, data, min(size, MAX_SIZE), other) if is_entry else None), data, size


def _check_extended(file: RangeReader, kind: bytes, data: int, size: int) -> None:
    if size > (_MAX_NAME if kind == b"L" else _MAX_RECORDS) and kind != b"K" and data + size <= file.size:
        raise ValueError(f"{size} bytes of {'name' if kind == b'L' else 'pax records'}")


def _read_extended(file: RangeReader, kind: bytes, data: int, size: int, extended: _Extended) -> None:
    """Takes what an extended header says; one that the file cuts says nothing."""
    if kind == b"K" or data + size > file.size:
        return
    content = file.read_at(data, size)
    if kind == b"L":
        extended.name = extended.name or content.split(b"\0", 1)[0]
        return
    records = _pax_records(content)
    if kind != b"g":
        extended.take(records)
    elif b"path" in records or b"size" in records:
        raise ValueError("one name or size for all members")


def _content_behind(file: RangeReader, position: int) -> int | None:
    """The first block from `position` on that is not zero; None if there is none."""
    length = _PADDING_READS[0]
    while block := file.read_at(position, length):
        if block != _ZERO_READ[: len(block)]:
            return position + (len(block) - len(block.lstrip(b"\0"))) // _BLOCK * _BLOCK
        position, length = position + len(block), _PADDING_READS[1]
    return None


def _refuse_header(header: bytes, position: int, file_size: int) -> Never:
    if not header:
        raise DamageError("ends without a tar's end mark" if position else "has no bytes")
    if position == 0:
        if header.startswith(_COMPRESSED):
            raise NotTarError("is compressed; unpack it to a plain tar")
        raise NotTarError("is no tar file; leave it out, or make it again")
    fault = "ends inside" if len(header) < _BLOCK else "has a broken"
    raise DamageError(f"{fault} header at byte {position} of {file_size}")


def _is_header(header: bytes) -> bool:
    """Whether a block has its checksum."""
    if len(header) < _BLOCK:
        return False
    own = header[148:156]
    stored = own.strip(b"\0 ")
    if not stored or stored.strip(b"01234567"):
        return False
    checksum = int(stored, 8)
    # Adler-32 ends with 1 + the sum of the bytes modulo 65521, and is ten times as fast as `sum`
    if adler32(header) & 0xFFFF == (1 + checksum + sum(own) - 8 * ord(" ")) % _ADLER:
        return True
    rest = header[:148] + header[156:]
    return checksum == 8 * ord(" ") + sum(byte - 256 if byte > 127 else byte for byte in rest)  # as old tars sum bytes


def _parse_number(data: bytes) -> int:
    """A numeric field: octal digits, or big-endian binary if the first bit is set (sizes from 8 GiB on).

    Raises:
        ValueError: it is none, or below zero.
    """
    if data[0] & 0x80:
        number = int.from_bytes(data, "big", signed=True) if data[0] == 0xFF else int.from_bytes(data[1:], "big")
        if number < 0:
            raise ValueError("a negative size")
        return number
    digits = data.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise ValueError("a negative size" if digits.startswith(b"-") else "a malformed number")
    return int(digits or b"0", 8)


def _digits(data: bytes) -> int:
    """A decimal number of a pax record, of which thousands of digits are no number."""
    if not data.isdigit() or len(data) > 20:
        raise ValueError("a negative size" if data.startswith(b"-") else "a malformed number")
    return int(data)


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The `length key=value` lines of a pax header (POSIX.1-2001, pax, "extended header").

    Raises:
        ValueError: there is something else.
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position]:
        space = data.find(b" ", position, position + 20)
        end = position + _digits(data[position:space]) if space > 0 else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1] != ord("\n") or not equals:
            raise ValueError("malformed pax records")
        records[key] = value
        position = end
    return records
