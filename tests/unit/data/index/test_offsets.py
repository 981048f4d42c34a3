"""Offsets read back from their file are those of the scan."""

import struct
import zlib

import numpy as np
import pytest
from shard_files import write_tar

from clipx.data.filters import FilterResult
from clipx.data.index.offsets import ShardOffsets, offsets_to_bytes
from clipx.storage.files import file_state, open_ranges
from clipx.storage.tar import scan_tar


def scan(path):
    return scan_tar(open_ranges(str(path)))


def stored(path, content):
    path.write_bytes(content)
    return ShardOffsets(path)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [("a/0.jpg", b"x" * 700), ("a/0.seg.PNG", b"y"), ("a/0.txt", b""), ("b/0.jpg", b"z"), ("ключ.json", b"{}")],
    ],
)
def test_offsets_are_those_of_the_scan(tmp_path, members):
    path = write_tar(tmp_path / "a.tar", members)
    found = scan(path)
    offsets = stored(tmp_path / "offsets", offsets_to_bytes(found, file_state(str(path))))
    assert offsets.num_samples == len(found.keys) == len({name.partition(".")[0] for name, _ in members})
    for i in range(offsets.num_samples):
        assert (offsets.key(i), offsets.members(i)) == (found.key(i), found.members(i))


def test_broken_offsets_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"y")])
    state = file_state(str(path))
    offsets = stored(tmp_path / "offsets", offsets_to_bytes(scan(path), state))
    assert (offsets.num_samples, offsets.shard, offsets.filter_id) == (2, state, 0)
    whole = (tmp_path / "offsets").read_bytes()
    for broken in (b"", whole[:-1], whole[:20], b"X" + whole[1:], whole.replace(b"CLIPXIX3", b"CLIPXIX1")):
        (tmp_path / "offsets").write_bytes(broken)
        with pytest.raises(ValueError, match=r"no bytes|not offsets of this version|the checksum is wrong"):
            ShardOffsets(tmp_path / "offsets")


def test_filtered_offsets_count_what_passes(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * i) for i in range(5)])
    result = FilterResult(7, np.array([1, 0, 2, 0, 0], np.uint8), np.arange(5, dtype=np.uint64))
    offsets = stored(tmp_path / "offsets", offsets_to_bytes(scan(path), file_state(str(path)), result))
    assert (offsets.num_samples, offsets.filter_id) == (3, 7)
    assert [(offsets.key(i), offsets.members(i)[0].size) for i in range(3)] == [("1", 1), ("3", 3), ("4", 4)]
    assert offsets.hashes.tolist() == [0, 1, 2, 3, 4]
    other = stored(tmp_path / "other", offsets.to_bytes(np.array([0, 3, 0, 0, 0])))
    assert (other.reasons.tolist(), other.key(0), other.num_samples) == ([0, 3, 0, 0, 0], "0", 4)
    assert other.hashes.tolist() == offsets.hashes.tolist()


def filtered_offsets(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.{e}", b"x" * i) for i in range(3) for e in ("jpg", "txt")])
    result = FilterResult(7, np.array([1, 0, 2], np.uint8), np.arange(3, dtype=np.uint64))
    return offsets_to_bytes(scan(path), file_state(str(path)), result)


def test_no_byte_can_change_unseen(tmp_path):
    """A flipped bit gave pictures with other samples' captions, cut captions, and tracebacks."""
    content = filtered_offsets(tmp_path)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= (0x01, 0x08, 0x80, 0xFF)[place % 4]
        with pytest.raises(ValueError, match=r"not offsets of this version|the checksum is wrong|wrong length"):
            stored(tmp_path / "offsets", bytes(changed))
    for length in range(0, len(content), 7):
        with pytest.raises(ValueError, match=r"no bytes|not offsets of this version|the checksum is wrong"):
            stored(tmp_path / "offsets", content[:length])


def old(content):
    """The file as the version before wrote it."""
    return b"CLIPXIX2" + content[8:72] + content[80:]


def test_of_the_version_before_only_filtered_ones_are_taken(tmp_path):
    content = filtered_offsets(tmp_path)
    offsets = stored(tmp_path / "offsets", old(content))
    assert ([offsets.key(i) for i in range(offsets.num_samples)], offsets.filter_id) == (["1"], 7)
    assert [member[2] for member in offsets.members(0)] == [1, 1]
    renewed = stored(tmp_path / "new", offsets.to_bytes(np.array([0, 0, 2], np.uint8)))
    assert ([renewed.key(i) for i in range(2)], renewed.vouched) == (["0", "1"], False)
    assert offsets.is_as(content)
    plain = offsets_to_bytes(scan(tmp_path / "a.tar"), file_state(str(tmp_path / "a.tar")))
    with pytest.raises(ValueError, match="not offsets of this version"):
        stored(tmp_path / "offsets", old(plain))


INT64 = struct.Struct("<q")


@pytest.mark.parametrize("make", [old, lambda content: content])
def test_a_strangers_numbers_stay_within_the_shard(tmp_path, make):
    """A checksum that fits says nothing of who wrote the file: whatever 8 bytes say, it is refused or stays inside."""
    content = filtered_offsets(tmp_path)
    body = 80
    for place in range(0, len(content) - 8, 4):
        for number in (-1, 1 << 40, (1 << 63) - 1):
            if body - 8 <= place + 4 and place < body:
                continue  # the checksum itself
            changed = bytearray(content)
            changed[place : place + 8] = INT64.pack(number)
            changed[72:80] = struct.pack("<Q", zlib.crc32(changed[80:], zlib.crc32(changed[:72])))
            try:
                offsets = stored(tmp_path / "offsets", make(bytes(changed)))
            except ValueError:
                continue
            for i in range(offsets.num_samples):
                assert len(offsets.key(i)) < 100
                for extension, offset, size in offsets.members(i):
                    assert len(extension) < 100
                    assert 0 <= offset <= offsets.shard.size
                    assert 0 <= size <= 1 << 62
