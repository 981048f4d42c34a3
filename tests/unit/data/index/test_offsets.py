"""Offsets read back from their file are those of the scan."""

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
