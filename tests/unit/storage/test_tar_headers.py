"""A tar ends where it ends: crazy headers, endless ones, and what stands behind the end are said, in bounded work."""

import io
import os
import tarfile

import pytest
from shard_files import write_tar

from clipx.config.data import RemoteConfig
from clipx.storage import files as files_module
from clipx.storage.files import RemoteFile, open_ranges
from clipx.storage.tar import scan_tar
from clipx.storage.tar_headers import Entry, NotTarError, walk

GIB = 1 << 30


class Counted:
    """A file in memory that counts its reads, and refuses what is too much."""

    def __init__(self, content: bytes, *, size: int | None = None, largest: int = 16 << 20) -> None:
        self.content, self.size, self.largest = content, size or len(content), largest
        self.reads: list[int] = []

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 <= length <= self.largest
        self.reads.append(length)
        have = self.content[offset : offset + length]
        return have + bytes(max(min(length, self.size - offset) - len(have), 0))

    def close(self) -> None:
        pass


def header(name: bytes, *, size: bytes = b"00000000000\0", kind: bytes = b"0", tail: bytes = b"") -> bytes:
    """A header block whose size field is given as it is; `tail` stands from byte 345 on."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157], block[257:265] = name, size, kind, b"ustar\x0000"
    block[345 : 345 + len(tail)] = tail
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"x", **fields: bytes) -> bytes:
    return header(name, size=b"%011o\0" % len(data), **fields) + data + bytes(-len(data) % 512)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"pax", records, kind=kind)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def scanned(content: bytes, **options):
    scan = scan_tar(Counted(content, **options))
    return [key.decode() for key in scan.keys], scan.damage


END = bytes(1024)
FIRST, LAST = member(b"0.txt"), member(b"9.txt")


def test_a_tar_behind_the_end_mark_is_named_and_can_be_read():
    joined = FIRST + END + bytes(8192) + member(b"1.txt", b"one") + END + LAST + END
    keys, damage = scanned(joined)
    assert keys == ["0"]
    assert damage.startswith(f"holds another tar behind its end mark (at byte {1024 + 9216} of {len(joined)}")
    assert "tar --concatenate" in damage
    whole = scan_tar(Counted(joined), joined=True)
    assert (whole.keys, whole.damage) == ([b"0", b"1", b"9"], None)
    file = Counted(joined)
    assert [file.read_at(m.offset, m.size) for i in range(3) for m in whole.members(i)] == [b"x", b"one", b"x"]
    assert scanned(END + LAST + END)[1].startswith("holds another tar behind its end mark (at byte 1024 of")
    assert scanned(FIRST + bytes(512) + LAST + END)[1].startswith("holds another tar behind its end mark")


@pytest.mark.parametrize(("zeros", "rest"), [(0, b"\1"), (0, b"signature"), (1024, bytes(88) + b"x" + bytes(600))])
def test_other_bytes_behind_the_end_mark_are_named(zeros, rest):
    where = f"holds {len(rest)} bytes behind its end mark (from byte {2048 + zeros} on) that are no tar"
    assert scanned(FIRST + END + bytes(zeros) + rest) == (["0"], where)


def test_padding_is_fine_and_cheap():
    file = Counted(FIRST + END, size=GIB)
    scan = scan_tar(file)
    assert (scan.keys, scan.damage) == ([b"0"], None)
    assert len(file.reads) < 300  # and none of them larger than a block of a scan over a network
    assert max(file.reads) <= 4 << 20
    assert scanned(FIRST + END + bytes(9000)) == (["0"], None)


def test_padding_costs_no_further_request(monkeypatch):
    content, requests = FIRST + LAST + END + bytes(8192), []

    def read_range(url, start, stop, *, size, remote):
        requests.append((start, stop))
        return content[start:stop]

    monkeypatch.setattr(files_module.remote_files, "read_range", read_range)
    scan = scan_tar(RemoteFile("u", len(content), remote=RemoteConfig(), read_ahead=4 << 20))
    assert (scan.keys, len(requests)) == ([b"0", b"9"], 1)


@pytest.mark.parametrize(
    ("broken", "damage"),
    [
        (header(b"1.txt", size=b"-0000000777\0"), "has a header with a negative size at byte 1024"),
        (header(b"1.txt", size=b"\xff" * 12), "has a header with a negative size at byte 1024"),
        (header(b"1.txt", size=b"\xff" * 10 + b"\xfc\0"), "has a header with a negative size at byte 1024"),
        (header(b"1.txt", size=b"0000000008x\0"), "has a header with a malformed number at byte 1024"),
        (header(b"1.txt", size=b"0000_000001\0"), "has a header with a malformed number at byte 1024"),
        (pax(record(b"size", b"-512")) + FIRST, "has a header with a negative size at byte 1024"),
        (pax(record(b"size", b"9" * 5000)) + FIRST, "has a header with a malformed number at byte 1024"),
        (pax(record(b"size", b"many")) + FIRST, "has a header with a malformed number at byte 1024"),
        (pax(b"99999999999999999999 path=x\n"), "has a header with malformed pax records at byte 1024"),
        (pax(b"9" * 5000 + b" path=x\n"), "has a header with malformed pax records at byte 1024"),
        (pax(b"0 path=x\n"), "has a header with malformed pax records at byte 1024"),
        (pax(b"10 path=xx\n"), "has a header with malformed pax records at byte 1024"),
        (pax(record(b"path", b"x.txt"), kind=b"g"), "has a header with one name or size for all members at byte 1024"),
        (pax(record(b"size", b"1"), kind=b"g"), "has a header with one name or size for all members at byte 1024"),
    ],
)
def test_numbers_that_are_none_are_damage(broken, damage):
    keys, found = scanned(FIRST + broken + LAST + END)
    assert keys == ["0"]
    assert found.startswith(damage)


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"77777777777\0", pax(record(b"size", b"9" * 20))])
def test_a_member_larger_than_the_file_is_cut_and_fits_the_index(size):
    content = header(b"1.txt", size=size) if len(size) == 12 else size + member(b"1.txt")
    scan = scan_tar(Counted(FIRST + content + LAST + END))
    assert scan.keys == [b"0", b"1"]
    assert scan.damage.startswith("ends inside a member, ")
    assert 0 < scan.sizes[1] <= 1 << 62


@pytest.mark.parametrize(("kind", "limit"), [(b"L", 1 << 16), (b"x", 16 << 20), (b"g", 16 << 20)])
def test_names_and_records_of_gigabytes_are_not_read(kind, limit):
    content = FIRST + header(b"long", size=b"%011o\0" % GIB, kind=kind)
    file = Counted(content, size=2 * GIB, largest=limit)
    scan = scan_tar(file)
    assert scan.keys == [b"0"]
    assert f"a header with {GIB} bytes of" in scan.damage
    assert sum(file.reads) < 1 << 16


def test_a_chain_of_extended_headers_ends_with_the_file():
    chain = pax(record(b"comment", b"again")) * 2000
    file = Counted(FIRST + chain)
    scan = scan_tar(file)
    assert (scan.keys, scan.damage) == ([b"0"], "ends without a tar's end mark")
    assert len(file.reads) < 2 * 2000 + 10


def test_of_several_extended_headers_the_first_counts_as_for_tarfile():
    content = pax(record(b"path", b"a.txt")) + pax(record(b"path", b"b.txt") + record(b"size", b"2"))
    content += member(b"c.txt", b"xy") + member(b"long", b"d.txt\0", kind=b"L") + pax(record(b"path", b"e.txt"))
    content += member(b"f.txt") + pax(record(b"comment", b"a commit of git"), kind=b"g")
    content += pax(record(b"path", b"s.txt"), kind=b"X") + LAST + END
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [name.removesuffix(".txt") for name in tar.getnames()]
    assert scanned(content) == (expected, None)
    assert expected == ["a", "d", "s"]


def test_links_and_sparse_files_are_told_apart_from_files():
    sparse = header(b"s.jpg", kind=b"S", size=b"%011o\0" % 1, tail=bytes(137) + b"\1")
    tables = bytes(504) + b"\1" + bytes(7) + bytes(512)
    content = FIRST + sparse + tables + b"x" + bytes(511)
    content += member(b"h.jpg", b"", kind=b"1") + header(b"l.jpg", kind=b"2", size=b"00000001000\0")
    names = record(b"GNU.sparse.name", b"p.jpg") + record(b"path", b"./GNUSparseFile.0/p.jpg")
    content += pax(record(b"GNU.sparse.major", b"1") + names) + member(b"GNUSparseFile.0/p.jpg")
    content += header(b"d.x", kind=b"5") + header(b"f.jpg", kind=b"6") + LAST + END
    assert [(entry.name, entry.kind) for entry in walk(Counted(content))] == [
        (b"0.txt", None), (b"s.jpg", "sparse file"), (b"h.jpg", "hard link"), (b"l.jpg", "symbolic link"),
        (b"p.jpg", "sparse file"), (b"f.jpg", "fifo"), (b"9.txt", None),
    ]  # fmt: skip
    assert scanned(content) == (["0", "9"], None)


def test_sparse_tables_without_end_stop_with_the_file():
    sparse = header(b"s.jpg", kind=b"S", tail=bytes(137) + b"\1")
    file = Counted(FIRST + sparse + (bytes(504) + b"\1" + bytes(7)) * 100)
    assert scan_tar(file).damage == "ends inside a member, 512 bytes short"
    assert len(file.reads) < 110


def test_checksums_of_signed_bytes_hold():
    block = bytearray(header("ключ.txt".encode()))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in block)
    assert scanned(bytes(block) + END) == (["ключ"], None)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(OSError, match="it is a fifo, not a file"):
        open_ranges(str(tmp_path / "0.tar"))
    with pytest.raises(OSError, match="it is a device, not a file"):
        open_ranges("/dev/zero")
    with pytest.raises(IsADirectoryError):
        open_ranges(str(tmp_path))


def test_the_first_block_decides_whether_it_is_a_tar(tmp_path):
    with pytest.raises(NotTarError):
        scanned(b"GIF89a" * 200)
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    assert next(walk(open_ranges(str(path)))) == Entry(b"0.txt", 512, 1, None)
