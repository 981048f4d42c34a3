import multiprocessing
import os
import pickle
import time

import fsspec
import pytest
from servers import WebServer, object_store
from shard_files import pair, sample_ref, write_shards, write_tar

from clipx.config.data import CacheConfig, RemoteConfig
from clipx.data import shards as shards_module
from clipx.data.index.shard_index import build_index
from clipx.data.shards import BadSampleError, SampleName, ShardReader
from clipx.errors import RunError
from clipx.storage import remote as remote_module
from clipx.storage.files import open_ranges

QUICK = RemoteConfig(timeout_s=0.5, retries=1, connections=3)


def reader_of(*indexes, extensions=None, **options):
    return ShardReader(indexes, extensions=extensions or [None] * len(indexes), **options)


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


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch, tmp_path):
    monkeypatch.setattr(remote_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "clipx-cache"))


@pytest.fixture
def web(tmp_path):
    """Three shards on a web server, their index, and the server."""
    paths = write_shards(tmp_path / "web", [30, 20, 40])
    files = {}
    for path in paths:
        with open(path, "rb") as file:
            files[os.path.basename(path)] = file.read()
    with WebServer(files) as server:
        yield server, build_index([f"{server.url}/{{00000..00002}}.tar"])


def test_reads_any_sample_in_any_order(index):
    reader = reader_of(index)
    assert not reader.remote_sources
    for shard, sample, number in ((2, 3, 8), (0, 0, 0), (1, 1, 4), (2, 0, 5), (0, 2, 2)):
        ref = sample_ref(0, shard, sample)
        assert reader.read(ref) == pair(number)
        assert reader.name(ref) == SampleName(index.paths[shard], f"{number:06d}", ("png", "txt"))
    assert reader.wait_s == 0


def test_reads_only_the_members_asked_for_and_names_all(index, tmp_path):
    write_shards(tmp_path / "second", [2])
    reader = reader_of(index, build_index([str(tmp_path / "second")]), extensions=[{"txt", "json"}, {"png"}])
    assert reader.read(sample_ref(0, 1, 0)) == {"txt": b"picture 3"}
    assert reader.read(sample_ref(1, 0, 1)) == {"png": pair(1)["png"]}
    assert reader.name(sample_ref(0, 1, 0)) == SampleName(index.paths[1], "000003", ("png", "txt"))


def test_keeps_a_bounded_number_of_shards_open(index, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "_MAX_OPEN_SHARDS", 2)
    reader = reader_of(index)

    def open_tars():
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        files = [os.readlink(link) for link in links if os.path.exists(link)]
        return sum(file.startswith(f"{tmp_path}/") and file.endswith(".tar") for file in files)

    for _ in range(3):
        for shard in range(3):
            assert reader.read(sample_ref(0, shard, 0))["png"] == pair(sum([3, 2, 4][:shard]))["png"]
            assert open_tars() <= 2


def test_truncated_member_is_a_bad_sample_and_the_rest_is_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("0.txt", b"x"), ("1.jpg", b"y" * 2000)])
    path.write_bytes(path.read_bytes()[:2000])
    with WebServer({"x.tar": path.read_bytes()}) as server:
        for shard in (str(path), f"{server.url}/x.tar"):
            reader = reader_of(build_index([shard]))
            reader.expect([sample_ref(0, 0, 0), sample_ref(0, 0, 1)], until=0)
            assert reader.read(sample_ref(0, 0, 0)) == {"txt": b"x"}
            for _ in range(2):
                with pytest.raises(BadSampleError, match=r"^shard truncated$"):
                    reader.read(sample_ref(0, 0, 1))


def test_io_error_is_tried_three_times(index, waits, monkeypatch):
    failures, real, opened = [], os.pread, []
    monkeypatch.setattr(
        shards_module, "open_ranges", lambda *args, **kwargs: opened.append(1) or open_ranges(*args, **kwargs)
    )

    def pread(*arguments):
        if len(failures) < 2:
            failures.append(1)
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    assert reader_of(index).read(sample_ref(0, 0, 1)) == pair(1)
    assert len(waits) == 2
    assert len(opened) == 3  # a network file system's descriptor may be stale
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(
        RunError, match=r"00000.tar cannot be read after 3 tries: .*Input/output error; check the storage"
    ) as caught:
        reader_of(index).read(sample_ref(0, 0, 1))
    assert "\n" not in str(caught.value)


def test_shard_that_vanished_or_changed_ends_the_run(index, waits):
    with open(index.paths[0], "ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match=r"00000.tar changed after it was indexed \(\d+ bytes then, \d+ now\)"):
        reader_of(index).read(sample_ref(0, 0, 0))
    os.unlink(index.paths[1])
    with pytest.raises(RunError, match=r"00001.tar cannot be read after 3 tries.*check the address"):
        reader_of(index).read(sample_ref(0, 1, 0))


def test_pickled_reader_reads(index):
    reader = reader_of(index)
    reader.read(sample_ref(0, 0, 0))
    assert pickle.loads(pickle.dumps(reader)).read(sample_ref(0, 1, 0)) == pair(3)


def test_forked_process_opens_its_own(index):
    reader = reader_of(index)
    reader.read(sample_ref(0, 0, 0))
    child = os.fork()
    if child == 0:
        fine = reader.read(sample_ref(0, 0, 1)) == pair(1) and reader._process == os.getpid()
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.read(sample_ref(0, 0, 2)) == pair(2)


def test_remote_shard_is_read_by_ranges(tmp_path):
    (path,) = write_shards(tmp_path / "s", [3])
    with open(path, "rb") as file:
        fsspec.filesystem("memory").pipe("/read/0.tar", file.read())
    reader = reader_of(build_index(["memory:///read/0.tar"]))
    assert [reader.read(sample_ref(0, 0, i)) for i in (2, 0)] == [pair(2), pair(0)]


def test_a_sample_that_nobody_expected_is_one_request(web):
    server, index = web
    reader = reader_of(index)
    reader.read(sample_ref(0, 1, 0))
    server.requests.clear()
    assert reader.read(sample_ref(0, 1, 7)) == pair(37)
    assert len(server.requests) == 1
    assert reader.remote_sources == {0}
    assert reader.wait_s > 0


def test_expected_samples_come_in_few_requests(web):
    server, index = web
    reader = reader_of(index, remote=QUICK)
    server.requests.clear()
    refs = [sample_ref(0, 0, i) for i in range(9, 0, -1)] + [sample_ref(0, 2, i) for i in (3, 30)]
    reader.expect(refs, until=1)
    assert [reader.read(ref) for ref in refs[::-1]] == [
        *map(pair, (80, 53)),
        *map(pair, range(1, 10)),
    ]
    assert sorted(path for path, _ in server.requests) == ["00000.tar"] * 2 + ["00002.tar"] * 2  # size, and one range
    assert reader._prefetcher.buffered_bytes == 0


def test_background_failure_surfaces_where_the_sample_is_read(web, caplog):
    server, index = web
    reader = reader_of(index, remote=QUICK)
    reader.read(sample_ref(0, 0, 0))
    server.failures = 2
    reader.expect([sample_ref(0, 0, 1), sample_ref(0, 0, 2)], until=0)
    with pytest.raises(RunError, match=rf"{server.url}/00000.tar cannot be read: .*503.*2 tries\); check the storage"):
        reader.read(sample_ref(0, 0, 1))
    assert reader.read(sample_ref(0, 1, 1)) == pair(31)


@pytest.mark.parametrize("mode", ["silent", "stall", "cut", "gone"])
@pytest.mark.parametrize("expected", [False, True])
def test_a_server_that_goes_away_ends_the_run_in_time(web, mode, expected):
    server, index = web
    reader = reader_of(index, remote=QUICK)
    reader.read(sample_ref(0, 0, 0))
    if mode == "gone":
        server.vanish()
    else:
        server.mode = mode
    start = time.monotonic()
    if expected:
        reader.expect([sample_ref(0, shard, i) for shard in range(3) for i in range(20)], until=0)
    with pytest.raises(RunError, match=rf"^shard {server.url}/00002.tar cannot be read: .*2 tries\); check") as caught:
        reader.read(sample_ref(0, 2, 19))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20  # not a measurement: it would be for ever


def test_shard_that_changes_on_its_server_ends_the_run(web):
    server, index = web
    reader = reader_of(index, remote=QUICK)
    reader.read(sample_ref(0, 0, 0))
    server.files["00000.tar"] += b"more"
    with pytest.raises(
        RunError, match=r"00000.tar cannot be read: the file has \d+ bytes now, not \d+; run `clipx data"
    ):
        reader.read(sample_ref(0, 0, 1))
    server.files["00001.tar"] += b"more"
    with pytest.raises(RunError, match=r"00001.tar changed after it was indexed"):
        reader.read(sample_ref(0, 1, 1))


def test_the_cache_holds_whole_shards_and_needs_no_server_then(web, tmp_path):
    server, index = web
    cache = CacheConfig(folder=str(tmp_path / "kept"), max_gb=1)
    reader = reader_of(index, cache=cache)
    reader.expect([sample_ref(0, 1, 3)], until=0)
    assert reader.read(sample_ref(0, 1, 3)) == pair(33)
    server.vanish()
    for each in (reader, reader_of(index, cache=cache, remote=QUICK)):
        assert [each.read(sample_ref(0, 1, i)) for i in range(20)] == [pair(i) for i in range(30, 50)]
    with pytest.raises(RunError, match=r"00002.tar cannot be read"):
        reader_of(index, cache=cache, remote=QUICK).read(sample_ref(0, 2, 0))


def test_a_cache_without_room_leaves_the_ranges(web, tmp_path, caplog):
    _, index = web
    reader = reader_of(index, cache=CacheConfig(folder=str(tmp_path / "kept"), max_gb=1e-6), remote=QUICK)
    reader.expect([sample_ref(0, 1, 3), sample_ref(0, 2, 3)], until=0)
    assert reader.read(sample_ref(0, 1, 3)) == pair(33)
    assert reader.read(sample_ref(0, 2, 3)) == pair(53)
    assert sum("larger than the cache" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("source", ["pipe", "web"])
def test_sources_without_ranges_are_fetched_whole(web, tmp_path, source, caplog):
    server, _ = web
    server.ranges = False
    pattern = f"pipe:cat {tmp_path}/web/{{00000..00002}}.tar"
    index = build_index([pattern if source == "pipe" else f"{server.url}/{{00000..00002}}.tar"])
    reader = reader_of(index)
    reader.expect([sample_ref(0, 1, 0)], until=0)
    assert reader.read(sample_ref(0, 1, 0)) == pair(30)
    assert reader.read(sample_ref(0, 2, 39)) == pair(89)
    server.requests.clear()
    for _ in range(5):
        reader.read(sample_ref(0, 2, 0))
    assert not server.requests


def _read_in_child(reader, refs, queue):
    reader.expect(refs, until=0)
    queue.put([reader.read(ref) for ref in refs])


def test_forked_processes_read_over_connections_of_their_own(web, tmp_path):
    """The parent has used http and S3, with threads under way, before it forks."""
    _, index = web
    with object_store():
        (path,) = write_shards(tmp_path / "s", [6])
        fsspec.filesystem("s3").put_file(path, "bucket/0.tar")
        reader = reader_of(index, build_index(["s3://bucket/0.tar"]))
        refs = [sample_ref(0, 1, 3), sample_ref(1, 0, 2), sample_ref(1, 0, 5)]
        wanted = [pair(33), pair(2), pair(5)]
        reader.expect(refs, until=0)
        assert [reader.read(ref) for ref in refs] == wanted
        fork = multiprocessing.get_context("fork")
        queue = fork.Queue()
        children = [fork.Process(target=_read_in_child, args=(reader, refs, queue)) for _ in range(2)]
        for child in children:
            child.start()
        assert [queue.get(timeout=60) for _ in children] == [wanted, wanted]
        for child in children:
            child.join(60)
        assert [reader.read(ref) for ref in refs] == wanted


@pytest.mark.parametrize("remote", [False, True])
def test_a_sample_of_gigabytes_is_bad_and_not_fetched(tmp_path, monkeypatch, remote):
    monkeypatch.setattr("clipx.storage.tar.MAX_SAMPLE_BYTES", 1000)
    (path,) = write_shards(tmp_path, [3], replaced={1: {"png": bytes(900), "txt": bytes(101)}})
    if remote:
        memory = fsspec.filesystem("memory")
        memory.put(path, "/large/0.tar")
        path = "memory:///large/0.tar"
    index = build_index([path])
    reader = reader_of(index)
    refs = [sample_ref(0, 0, i) for i in range(3)]
    reader.expect(refs, until=1)
    assert [reader.read(refs[i]) for i in (0, 2)] == [pair(0), pair(2)]
    with pytest.raises(BadSampleError, match="its members have 1001 bytes; a sample has at most 1000"):
        reader.read(refs[1])
    assert reader_of(index, extensions=[["png"]]).read(refs[1]) == {"png": bytes(900)}


def test_one_member_among_very_many_is_read(tmp_path):
    write_tar(tmp_path / "0.tar", [("f.jpg", b"j"), *((f"f.{i:06d}.jpg", b"x") for i in range(2000)), ("f.txt", b"t")])
    index = build_index([str(tmp_path)])
    assert reader_of(index, extensions=[["jpg", "txt"]]).read(sample_ref(0, 0, 0)) == {"jpg": b"j", "txt": b"t"}
