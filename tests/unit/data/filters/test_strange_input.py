"""Keys and members as people and strangers write them: byte order marks, pipes, gigabytes."""

import os
from pathlib import Path

import pytest
from shard_files import write_tar

from clipx.data.filters.filters import SampleFilter
from clipx.data.filters.key_list import KeyList
from clipx.data.index.shard_index import build_index
from clipx.errors import InputError


def filtered(tmp_path, where=(), **options):
    return build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=SampleFilter.parse(where, **options))


def keys(index):
    return [index.offsets(s).key(i) for s in range(len(index.paths)) for i in range(index.counts[s])]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path, bom):
    members = [("0.txt", bom + b"a b"), ("0.json", bom + b'{"n": 1}'), ("1.txt", b"a b"), ("1.json", b'{"n": 2}')]
    write_tar(tmp_path / "s" / "0.tar", members)
    (tmp_path / "keys.txt").write_bytes(bom + b"0\r\n1\r\n")
    index = filtered(tmp_path, ["json:n>=1"], keys=tmp_path / "keys.txt")
    assert (keys(index), index.left_out["not among the keys"]) == (["0", "1"], 0)


def test_keys_may_come_from_a_pipe(tmp_path):
    reading, writing = os.pipe()  # what a shell's <(...) is
    os.write(writing, b"000001\n\n000002\n")
    os.close(writing)
    assert len(KeyList.from_file(Path(f"/dev/fd/{reading}")).hashes) == 2
    os.close(reading)


def test_keys_in_utf_16_are_refused(tmp_path):
    (tmp_path / "keys.txt").write_text("0\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"keys.txt is UTF-16; save it as UTF-8"):
        SampleFilter.parse([], keys=tmp_path / "keys.txt")


def test_members_of_gigabytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("clipx.storage.tar.MAX_SAMPLE_BYTES", 1000)
    monkeypatch.setattr("clipx.data.filters.sample.MAX_TEXT", 100)
    members = [
        ("0.txt", b"a " * 600),
        ("0.json", b'{"n": 1, "x": "%s"}' % (b"x" * 100)),
        ("1.txt", b"a"),
        ("1.json", b'{"n": 1}'),
    ]
    write_tar(tmp_path / "s" / "0.tar", members)
    index = filtered(tmp_path, ["caption.words>=1", "json:n==1"])
    assert (keys(index), index.left_out["no caption"]) == (["1"], 1)
    one = build_index([str(tmp_path / "s")], index_dir=tmp_path / "j", filters=SampleFilter.parse(["json:n==1"]))
    assert (keys(one), one.left_out["no json:n"]) == (["1"], 1)
