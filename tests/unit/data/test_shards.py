import os
import pickle

import fsspec
import pytest
from shard_files import pair, write_shards, write_tar

from clipx.data import shards as shards_module
from clipx.data.index import build_index
from clipx.data.shards import BadSampleError, RawSample, SampleName, ShardReader
from clipx.errors import RunError


@pytest.fixture
def index(tmp_path):
    write_shards(tmp_path, [3, 2, 4])
    return build_index([str(tmp_path)])


@pytest.fixture
def waits(monkeypatch):
    """Seconds slept between tries, without sleeping."""
    slept = []
    monkeypatch.setattr(shards_module.time, "sleep", slept.append)
    return slept


def test_reads_any_sample_in_any_order(index):
    reader = ShardReader(index)
    for shard, sample, number in ((2, 3, 8), (0, 0, 0), (1, 1, 4), (2, 0, 5), (0, 2, 2)):
        assert reader.read(shard, sample) == RawSample(index.paths[shard], f"{number:06d}", pair(number))


def test_reads_only_the_members_asked_for_and_names_all(index):
    reader = ShardReader(index, extensions={"txt", "json"})
    assert reader.read(1, 0).fields == {"txt": b"picture 3"}
    assert reader.name(1, 0) == SampleName(index.paths[1], "000003", ("png", "txt"))


def test_keeps_a_bounded_number_of_shards_open(index, monkeypatch):
    monkeypatch.setattr(shards_module, "_MAX_OPEN_SHARDS", 2)
    reader = ShardReader(index)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for shard in range(3):
            assert reader.read(shard, 0).fields["png"] == pair(sum([3, 2, 4][:shard]))["png"]
            assert list(reader._open)[-1] == shard
            assert len(reader._open) <= 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2


def test_truncated_member_is_a_bad_sample_and_the_rest_is_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("0.txt", b"x"), ("1.jpg", b"y" * 2000)])
    path.write_bytes(path.read_bytes()[:2000])
    reader = ShardReader(build_index([str(path)]))
    assert reader.read(0, 0).fields == {"txt": b"x"}
    with pytest.raises(BadSampleError, match=r"^shard truncated$"):
        reader.read(0, 1)


def test_io_error_is_tried_three_times(index, waits, monkeypatch):
    failures, real = [], os.pread

    def pread(*arguments):
        if len(failures) < 2:
            failures.append(1)
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    assert ShardReader(index).read(0, 1).fields == pair(1)
    assert len(waits) == 2
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(
        RunError, match=r"00000.tar cannot be read after 3 tries: .*Input/output error; check"
    ) as caught:
        ShardReader(index).read(0, 1)
    assert "\n" not in str(caught.value)


def test_shard_that_vanished_or_changed_ends_the_run(index, waits):
    with open(index.paths[0], "ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match=r"00000.tar changed after it was indexed"):
        ShardReader(index).read(0, 0)
    os.unlink(index.paths[1])
    with pytest.raises(RunError, match=r"00001.tar cannot be read after 3 tries"):
        ShardReader(index).read(1, 0)
    index.sidecar_path(2).write_bytes(b"rubbish")
    with pytest.raises(RunError, match=r"00002.tar.clipx-index is damaged .*; delete it"):
        ShardReader(index).read(2, 0)


def test_pickled_reader_reads(index):
    reader = ShardReader(index)
    reader.read(0, 0)
    assert pickle.loads(pickle.dumps(reader)).read(1, 0).fields == pair(3)


def test_forked_process_opens_its_own(index):
    reader = ShardReader(index)
    reader.read(0, 0)
    child = os.fork()
    if child == 0:
        fine = reader.read(0, 1).fields == pair(1) and reader._process == os.getpid()
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.read(0, 2).fields == pair(2)


def test_remote_shard_is_read_by_ranges(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    (path,) = write_shards(tmp_path / "s", [3])
    with open(path, "rb") as file:
        fsspec.filesystem("memory").pipe("/read/0.tar", file.read())
    reader = ShardReader(build_index(["memory:///read/0.tar"]))
    assert [reader.read(0, i).fields for i in (2, 0)] == [pair(2), pair(0)]
