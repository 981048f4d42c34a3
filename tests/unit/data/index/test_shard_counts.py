"""Shard counts outlive their file, whatever version wrote it; what is broken is refused."""

import json
import zlib
from struct import pack

import numpy as np
import pytest

from clipx.data.index.shard_counts import ShardCounts, row_dtype
from clipx.data.index.shard_paths import packed

REASONS = ("a", "b, c")


def rows(names: list[str], counts: list[int]) -> np.ndarray:
    array = np.zeros(len(names), row_dtype(len(REASONS), max(map(len, names))))
    array["name"], array["count"], array["source"] = packed(names), counts, 1
    array["size"], array["mtime_ns"] = array["count"] * 10, array["count"] * 100
    array["left_out"] = [[count, 0] for count in counts]
    return array


def counts_of(*pairs: tuple[str, int]) -> ShardCounts:
    return ShardCounts(rows(*map(list, zip(*pairs, strict=True))), "width>=3", REASONS)


def old_file(counts: ShardCounts) -> bytes:
    """The file as version 1 wrote it."""
    columns = counts.rows
    about = {"shards": len(columns), "width": columns.dtype["name"].itemsize, "filter": counts.filter}
    text = json.dumps(about | {"reasons": counts.reasons}).encode()
    names = ("name", "count", "size", "mtime_ns", "source", "left_out")
    body = text + b"".join(np.ascontiguousarray(columns[name]).tobytes() for name in names)
    return pack("<8sIIq", b"CLIPXCAT", 1, zlib.crc32(body), len(text)) + body


@pytest.mark.parametrize("write", [ShardCounts.to_bytes, old_file])
@pytest.mark.parametrize(
    "counts",
    [
        counts_of(("10.tar", 1), ("2.tar", 4), ("3-longer-name.tar", 1 << 30)),
        ShardCounts(np.array([(b"a", 0, 0, 0, 0, ()), (b"b", 0, 0, 0, 0, ())], row_dtype(0, 5)), "", ()),
        ShardCounts(np.zeros(0, row_dtype(1)), "é", ("no",)),
    ],
)
def test_what_is_read_is_what_was_written(counts: ShardCounts, write) -> None:
    read = ShardCounts.from_bytes(write(counts))
    assert (read.filter, read.reasons) == (counts.filter, counts.reasons)
    assert read.rows.dtype == counts.rows.dtype
    for name in read.rows.dtype.names:
        assert read.rows[name].tolist() == counts.rows[name].tolist()


def test_people_can_read_the_file_with_numpy_alone(tmp_path) -> None:
    (tmp_path / "clipx-index.bin").write_bytes(counts_of(("0.tar", 7)).to_bytes())
    with np.load(tmp_path / "clipx-index.bin", allow_pickle=False) as file:
        assert file["rows"]["count"].tolist() == [7]
        assert str(file["filter"]) == "width>=3"


def test_new_rows_replace_those_of_equal_names() -> None:
    empty = ShardCounts(np.zeros(0, row_dtype(len(REASONS))), "width>=3", REASONS)
    first = empty.updated(rows(["10.tar", "2.tar"], [1, 2]))
    second = first.updated(rows(["3-longer-name.tar", "2.tar"], [3, 4]))
    assert (second.filter, second.reasons) == ("width>=3", REASONS)
    assert second.rows["name"].tolist() == [b"10.tar", b"2.tar", b"3-longer-name.tar"]
    assert second.rows["count"].tolist() == [1, 4, 3]
    assert second.rows["size"].tolist() == [10, 40, 30]
    assert second.rows["mtime_ns"].tolist() == [100, 400, 300]
    assert second.rows["left_out"].tolist() == [[1, 0], [4, 0], [3, 0]]
    assert second.find(packed(["2.tar", "4.tar"])).tolist() == [1, -1]


@pytest.mark.parametrize("write", [ShardCounts.to_bytes, old_file])
def test_broken_files_are_refused(write) -> None:
    whole = write(counts_of(("0.tar", 1), ("1.tar", 2)))
    for broken in (b"", whole[:10], whole[:12], whole[:-30], b"{" + whole[1:], b"\x93NUMPY\1\0" + bytes(20)):
        with pytest.raises(ValueError, match=r"."):
            ShardCounts.from_bytes(broken)
    start = whole.index(b"0.tar")  # in the rows themselves
    with pytest.raises(ValueError, match=r"Bad CRC-32|the checksum is wrong"):
        ShardCounts.from_bytes(whole[:start] + b"X" + whole[start + 1 :])


def test_a_file_of_objects_is_not_unpickled(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", rows=np.array([object()]), filter=np.array(""), reasons=np.array([], np.str_))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        ShardCounts.from_bytes((tmp_path / "a.npz").read_bytes())


@pytest.mark.parametrize("write", [ShardCounts.to_bytes, old_file])
def test_no_byte_can_change_unseen(write) -> None:
    counts = counts_of(("0.tar", 5), ("1.tar", 7))
    content = write(counts)
    for place in range(len(content)):
        for mask in (0x01, 0x08, 0x80, 0xFF):
            changed = bytearray(content)
            changed[place] ^= mask
            try:
                read = ShardCounts.from_bytes(bytes(changed))
            except ValueError:
                continue  # else it was a date in the zip, or the like
            assert (read.rows.tobytes(), read.filter, read.reasons) == (counts.rows.tobytes(), "width>=3", REASONS)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"."):
            ShardCounts.from_bytes(content[:length])


@pytest.mark.parametrize(
    ("column", "value"),
    [("count", -1), ("count", 1 << 62), ("size", -1), ("source", 9), ("left_out", -2), ("name", b"9.tar")],
)
def test_a_strangers_numbers_are_refused(column, value) -> None:
    counts = counts_of(("0.tar", 5), ("1.tar", 7))
    counts.rows[column][0] = value
    with pytest.raises(ValueError, match="a number is out of bounds"):
        ShardCounts.from_bytes(counts.to_bytes())


def test_a_zip_that_unpacks_to_more_than_it_is_is_refused(tmp_path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", rows=np.zeros(1 << 20, row_dtype(0, 5)), filter="", reasons=np.zeros(0, "U1")
    )
    with pytest.raises(ValueError, match="more than there is"):
        ShardCounts.from_bytes((tmp_path / "a.npz").read_bytes())
