import hashlib
import json
import logging
import os
import pickle
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from servers import WebServer, object_store
from shard_files import pair, write_shards, write_tar

from clipx.data.index import builder as builder_module
from clipx.data.index import remote_folder
from clipx.data.index import scan as scan_module
from clipx.data.index import shard_index as index_module
from clipx.data.index.folder import COUNTS_FILE, IndexFolder
from clipx.data.index.shard_counts import CountSource, ShardCounts, row_dtype
from clipx.data.index.shard_index import build_index, load_index
from clipx.data.index.shard_paths import packed
from clipx.errors import InputError, RunError
from clipx.storage.files import file_state


@pytest.fixture
def store(monkeypatch):
    """An object store with an empty bucket."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with object_store() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        s3 = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        if s3.exists("bucket"):  # moto's servers share what they hold
            s3.rm("bucket", recursive=True)
        s3.mkdir("bucket")
        yield s3
    s3.clear_instance_cache()


def names(paths):
    return sorted(os.path.basename(path) for path in paths)


def put(store, folder, paths):
    for path in paths:
        store.put(path, f"bucket/{folder}/{os.path.basename(path)}")


def test_build_then_load(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 1, 4])
    progress = []
    built = build_index([str(tmp_path / "s")], on_progress=lambda *done: progress.append(done))
    assert list(built.paths) == paths
    assert built.counts.dtype == np.int64
    assert (built.counts.tolist(), built.num_samples) == ([3, 1, 4], 8)
    assert (built.filter, built.left_out) == ("", {})
    assert progress == [(1, 3), (2, 3), (3, 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    loaded = load_index([str(tmp_path / "s")])
    again = build_index([f"{tmp_path}/s/00001.tar"], on_progress=lambda *done: progress.append(done))
    assert (list(loaded.paths), loaded.counts.tolist()) == (paths, [3, 1, 4])
    assert again.counts.tolist() == [1]
    assert progress[3:] == [(1, 1)]
    assert sorted(scanned) == paths
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == before
    assert [loaded.offsets(shard).num_samples for shard in range(3)] == [3, 1, 4]
    assert pickle.loads(pickle.dumps(loaded)).offsets(2).key(0) == "000004"


@pytest.mark.full  # several seconds until the first process has imported everything
def test_processes_index_as_threads_do(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [2, 1, 3, 1])
    monkeypatch.setattr(scan_module, "_MANY_SCANNED", 2)
    monkeypatch.setattr(scan_module.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(scan_module, "in_threads", None)
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [2, 1, 3, 1]
    (tmp_path / "t").mkdir()
    for number in range(3):
        (tmp_path / "t" / f"{number}.tar").write_bytes(b"GIF89a" * 200)
    with pytest.raises(InputError, match=r"shard .*0.tar is no tar file; leave it out"):
        build_index([str(tmp_path / "t")])


def test_one_index_serves_other_selections_and_spellings(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [3, 1, 4])
    monkeypatch.chdir(tmp_path)
    assert build_index(["s/00000.tar", "./s/00001.tar", f"{tmp_path}/s/00002.tar"]).counts.tolist() == [3, 1, 4]
    assert load_index([f"{tmp_path}/s"]).counts.tolist() == [3, 1, 4]


def test_fingerprint_is_names_and_counts_not_places(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_NAMES_AT_ONCE", 1)

    def fingerprint(folder, counts):
        write_shards(tmp_path / folder, counts)
        return build_index([str(tmp_path / folder)]).fingerprint()

    assert fingerprint("a", [3, 1]) == fingerprint("b", [3, 1]) != fingerprint("c", [1, 3])
    assert fingerprint("a", [3, 1]) == hashlib.sha256(b'[["00000.tar", 3], ["00001.tar", 1]]').hexdigest()
    assert build_index([f"pipe:cat '{tmp_path}/a/{{00000,00001}}.tar'"]).fingerprint() == fingerprint("a", [3, 1])
    os.rename(tmp_path / "b" / "00001.tar", tmp_path / "b" / "2.tar")
    assert build_index([str(tmp_path / "b")]).fingerprint() != fingerprint("a", [3, 1])


def test_changed_shard_is_scanned_again_and_lost_counts_are_not(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 1, 4])
    build_index([str(tmp_path / "s")])
    scanned.clear()
    (tmp_path / "s" / COUNTS_FILE).unlink()
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 1, 4]
    assert scanned == []  # an interrupted first scan goes on where it was
    os.utime(paths[0], ns=(0, file_state(paths[0]).mtime_ns + 1))
    write_shards(tmp_path / "t", [2])
    os.replace(tmp_path / "t" / "00000.tar", paths[1])
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 2, 4]
    assert sorted(scanned) == paths[:2]


def test_offsets_that_are_gone_are_made_when_they_are_opened(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 1])
    index = build_index([str(tmp_path / "s")])
    scanned.clear()
    index.offsets_path(0).unlink()
    assert build_index([str(tmp_path / "s")]).offsets(0).num_samples == 3
    assert load_index([str(tmp_path / "s")]).offsets(0).num_samples == 3
    assert scanned == paths[:1]
    shutil.copy(write_shards(tmp_path / "t", [30])[0], paths[1])
    index.offsets_path(1).unlink()
    with pytest.raises(RunError, match=r"00001.tar has .* bytes, .* when it was indexed; run `clipx data index`"):
        index.offsets(1)
    index.offsets_path(0).write_bytes(b"rubbish")
    assert index.offsets(0).num_samples == 3
    assert index.offsets_path(0).read_bytes() != b"rubbish"


def test_counts_that_are_foreign_or_broken_are_made_again(tmp_path):
    write_shards(tmp_path / "s", [3])
    (tmp_path / "s" / "clipx-index.json").write_text('{"version": 1, "shards": {"00000.tar": [7, 1, 1]}}')
    for content in (None, b"", b"{}", b"CLIPXCAT" + bytes(100)):
        if content is not None:
            (tmp_path / "s" / COUNTS_FILE).write_bytes(content)
        assert build_index([str(tmp_path / "s")]).counts.tolist() == [3]
        assert load_index([str(tmp_path / "s")]).counts.tolist() == [3]


def test_an_index_of_the_version_before_is_loaded(tmp_path, scanned):
    write_shards(tmp_path / "s", [3, 1])
    state = file_state(str(tmp_path / "s" / "00000.tar"))
    body = json.dumps({"shards": 1, "width": 9, "filter": "", "reasons": []}).encode() + b"00000.tar"
    body += np.array([3, *state], "<i8").tobytes() + bytes(1)
    header = struct.pack("<8sIIq", b"CLIPXCAT", 1, zlib.crc32(body), body.index(b"}") + 1)
    (tmp_path / "s" / COUNTS_FILE).write_bytes(header + body)
    assert load_index([f"{tmp_path}/s/00000.tar"]).counts.tolist() == [3]
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 1]
    assert scanned == [f"{tmp_path}/s/00001.tar"]
    assert load_index([str(tmp_path / "s")]).counts.tolist() == [3, 1]


def test_index_dir_and_cache_when_the_folder_cannot_be_written(tmp_path, monkeypatch, cache, scanned):
    write_shards(tmp_path / "a" / "s", [3])
    write_shards(tmp_path / "b" / "s", [4])
    both = [str(tmp_path / "a" / "s"), str(tmp_path / "b" / "s")]
    assert build_index(both, index_dir=str(tmp_path / "index")).counts.tolist() == [3, 4]
    assert load_index(both, index_dir=tmp_path / "index").counts.tolist() == [3, 4]
    assert names((tmp_path / "a" / "s").iterdir()) == ["00000.tar"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    scanned.clear()
    built = build_index(both)
    assert len(scanned) == 2
    assert built.offsets_path(0).is_relative_to(cache)
    monkeypatch.undo()
    monkeypatch.setenv("CLIPX_CACHE", str(cache))
    assert load_index(both).counts.tolist() == [3, 4]  # a rank that could write looks where rank 0 had to write


def test_load_only_reads(tmp_path):
    write_shards(tmp_path / "s", [3])
    with pytest.raises(InputError, match=r"00000.tar is not in the index at .*; run `clipx data index`"):
        load_index([str(tmp_path / "s")])
    assert names((tmp_path / "s").iterdir()) == ["00000.tar"]


def test_index_that_cannot_be_written(tmp_path):
    write_shards(tmp_path / "s", [3])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"index .* cannot be written: .*; make room there, or set data.index"):
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "file")


def test_empty_and_truncated_shards_warn_with_one_line_each(tmp_path, caplog):
    paths = write_shards(tmp_path / "s", [3, 0])
    cut = write_tar(tmp_path / "s" / "00002.tar", [("0.txt", b"x"), ("1.txt", b"y" * 2000)])
    cut.write_bytes(cut.read_bytes()[:2000])
    (tmp_path / "s" / "00003.tar").touch()
    with caplog.at_level(logging.WARNING):
        assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 0, 2, 0]
    assert [record.getMessage() for record in caplog.records] == [
        f"shard {cut} ends inside a member, 1536 bytes short; it counts with the 2 samples before that",
        f"shard {paths[1]} holds no samples",
        f"shard {tmp_path / 's' / '00003.tar'} holds no samples",
    ]
    caplog.clear()
    for number in range(4, 14):
        (tmp_path / "s" / f"{number:05d}.tar").touch()
    build_index([str(tmp_path / "s")])
    assert caplog.records[-1].getMessage() == "2 more shards hold no samples"
    assert len(caplog.records) == 12
    assert caplog.records[0].getMessage() == (
        f"1 shards lost samples or were odd when they were indexed (first: {cut}); `clipx data check` says why"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a" * 200, r"shard .*x.tar is no tar file; leave it out, or make it again"),
        (b"\x1f\x8b" + bytes(600), r"shard .*x.tar is compressed; unpack it to a plain tar"),
        (bytes(1024), r"the 1 shards \(first: .*x.tar\) hold no samples"),
    ],
)
def test_files_without_samples(tmp_path, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_index([str(tmp_path / "x.tar")])


def test_shard_that_cannot_be_read(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", [("0.txt", pair(0)["txt"])])

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scan_module, "open_ranges", fail)
    with pytest.raises(InputError, match=r"x.tar cannot be read: Permission denied; check"):
        build_index([str(tmp_path)])


def test_counts_of_many_new_local_shards_are_those_of_the_metadata(tmp_path, monkeypatch, scanned):
    paths = write_shards(tmp_path / "s", [3, 1, 4])
    for number, said in enumerate(['{"successes": 3}', '{"successes": 2}', "broken"]):
        (tmp_path / "s" / f"{number:05d}_stats.json").write_text(said)
    assert build_index([str(tmp_path / "s")], index_dir=tmp_path / "exact").counts.tolist() == [3, 1, 4]
    monkeypatch.setattr(builder_module, "_MAX_SCANNED", 2)
    scanned.clear()
    index = build_index([str(tmp_path / "s")])
    assert (index.counts.tolist(), scanned) == ([3, 2, 4], paths[2:])
    assert index.offsets(0).num_samples == 3
    assert index.offsets(0).key(1) == "000001"
    assert scanned == [paths[2], paths[0]]
    with pytest.raises(
        RunError, match=r"00001.tar holds 1 samples, its index \(from 00001_stats.json\) says 2; run `c"
    ):
        load_index([str(tmp_path / "s")]).offsets(1)
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 1, 4]  # as the message says
    scanned.clear()
    assert load_index([str(tmp_path / "s")]).offsets(1).num_samples == 1
    assert scanned == []
    both = {"00000.tar": 7, "00001.tar": 7, "00002.tar": 7}
    (tmp_path / "s" / "sizes.json").write_text(json.dumps(both))
    stated = build_index([str(tmp_path / "s")], index_dir=tmp_path / "stated")
    assert (stated.counts.tolist(), scanned) == ([7, 7, 7], [])
    with pytest.raises(RunError, match=r"holds 4 samples, its index \(from sizes.json\) says 7"):
        stated.offsets(2)
    again = build_index([str(tmp_path / "s")], index_dir=tmp_path / "stated", offsets=True)
    assert (again.counts.tolist(), len(scanned)) == ([3, 1, 4], 3)


def test_remote_shards_are_indexed_in_the_cache_by_one_listing(tmp_path, store, cache, scanned):
    put(store, "d", write_shards(tmp_path / "s", [5, 2]))
    built = build_index(["s3://bucket/d"])
    assert built.counts.tolist() == [5, 2] == load_index(["s3://bucket/d/{00000..00001}.tar"]).counts.tolist()
    assert built.offsets_path(0).is_relative_to(cache)
    assert built.fingerprint() == build_index([str(tmp_path / "s")]).fingerprint()
    scanned.clear()
    put(store, "d", [write_shards(tmp_path / "t", [3])[0]])
    assert build_index(["s3://bucket/*/0000?.tar"]).counts.tolist() == [3, 2]
    assert names(scanned) == ["00000.tar"]


def test_metadata_counts_of_a_store(tmp_path, store, scanned):
    put(store, "d", write_shards(tmp_path / "s", [5, 2, 3]))
    store.pipe("bucket/d/00000_stats.json", b'{"successes": 5}')
    store.pipe("bucket/d/00001_stats.json", b'{"successes": 2}')
    index = build_index(["s3://bucket/d"])
    assert (index.counts.tolist(), names(scanned)) == ([5, 2, 3], ["00002.tar"])
    assert index._sources.tolist() == [CountSource.STATS, CountSource.STATS, CountSource.SCAN]
    assert index.offsets(1).num_samples == 2
    store.pipe("bucket/d/00000_stats.json", b'{"successes": 4}')
    wrong = build_index(["s3://bucket/d"], index_dir=tmp_path / "wrong")
    assert wrong.counts.tolist() == [4, 2, 3]
    with pytest.raises(RunError, match=r"00000.tar holds 5 samples, its index \(from 00000_stats.json\) says 4"):
        wrong.offsets(0)
    assert build_index(["s3://bucket/d"], index_dir=tmp_path / "wrong").counts.tolist() == [
        5,
        2,
        3,
    ]  # as the message says


def test_an_index_in_a_store_and_beside_the_shards(tmp_path, store, cache, scanned):
    put(store, "d", write_shards(tmp_path / "s", [5, 2]))
    for folder in ("s3://bucket/index", "s3://bucket/d"):
        build_index(["s3://bucket/d"])
        build_index(["s3://bucket/d"], index_dir=folder)  # offsets of this machine are not scanned again, but sent
        assert sum(name.endswith(".clipx-index") for name in store.find(folder)) == 2
        shutil.rmtree(cache)  # another machine
        scanned.clear()
        loaded = load_index(["s3://bucket/d"], index_dir=folder)
        assert (loaded.counts.tolist(), loaded.offsets(0).num_samples, scanned) == ([5, 2], 5, [])
        assert loaded.offsets_path(0).is_relative_to(cache)
    store.put(write_shards(tmp_path / "u", [40])[0], "bucket/d/00000.tar")
    cache.rename(tmp_path / "old")
    build_index(["s3://bucket/d"], index_dir="s3://bucket/d")  # renewed by another machine
    shutil.rmtree(cache)
    (tmp_path / "old").rename(cache)
    beside = build_index(["s3://bucket/d"])  # found though nobody named it; never written to
    assert (beside.counts.tolist(), beside.offsets(0).num_samples) == ([40, 2], 40)
    put(store, "d", [write_shards(tmp_path / "t", [0, 0, 1])[2]])
    with pytest.raises(InputError, match=r"d/00002.tar is not in the index beside it; .* --out s3://bucket/d to renew"):
        build_index(["s3://bucket/d"])
    store.pipe("bucket/d/00001.tar", bytes(512))
    with pytest.raises(
        InputError, match=r"00001.tar has 512 bytes, \d+ by the index beside it; run `clipx data index`"
    ):
        build_index(["s3://bucket/d/{00000..00001}.tar"])


def test_stores_that_do_not_answer(store, monkeypatch):
    monkeypatch.setattr(remote_folder.remote_files.time, "sleep", lambda _: None)
    for absent in ("s3://bucket/none", "s3://nobucket/d", "s3://nobucket/*.tar", "s3://nobucket/{0..99}.tar"):
        with pytest.raises(InputError, match="match no tar file; nothing is there: check the bucket"):
            build_index([absent])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    store.clear_instance_cache()
    with pytest.raises(InputError, match=r"shards 's3://bucket/d' cannot be listed: no usable credentials: .*; check"):
        build_index(["s3://bucket/d"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store.clear_instance_cache()
    for patterns, folder in ((["s3://bucket/d"], None), (["s3://bucket/d/0.tar"], "s3://bucket/index")):
        with pytest.raises(
            InputError, match=r"cannot be (listed|read): Could not connect .*; check the storage"
        ) as caught:
            load_index(patterns, index_dir=folder)
        assert "\n" not in str(caught.value)


def test_a_web_server_is_not_asked_for_each_of_many_shards(tmp_path):
    files = {Path(path).name: Path(path).read_bytes() for path in write_shards(tmp_path / "s", [2, 1])}
    with WebServer(files) as web:
        assert build_index([web.url + "/{00000..00001}.tar"]).counts.tolist() == [2, 1]
        assert [path for path, _ in web.requests if path.endswith(".json")] == ["sizes.json", "00000_stats.json"]
        web.files["d/sizes.json"] = json.dumps({f"{i:05d}.tar": 2 for i in range(50)}).encode()
        web.files["d/00000.tar"] = files["00000.tar"]
        web.requests.clear()
        index = build_index([web.url + "/d/{00000..00049}.tar"])
        assert (index.num_samples, index.offsets(0).num_samples) == (100, 2)
        asked = [path for path, _ in web.requests]
        assert asked[:2] == [f"d/{COUNTS_FILE}", "d/sizes.json"]
        assert set(asked[2:]) == {"d/00000.tar"}
        web.requests.clear()
        assert load_index([web.url + "/d/{00000..00049}.tar"]).num_samples == 100
        assert len(web.requests) == 1
        with pytest.raises(InputError, match=r"00002.tar' \(from .*\) match no tar file"):
            build_index([web.url + "/{00000..00002}.tar"])
        web.files["page/"] = b'<a href="00000.tar">0</a> <a href="00001.tar">1</a> <a href="other.txt">2</a>'
        web.files |= {f"page/{name}": content for name, content in files.items()}
        assert build_index([web.url + "/page/"]).counts.tolist() == [2, 1]


def test_commands_are_indexed_in_the_cache(tmp_path, cache):
    write_shards(tmp_path / "s", [2, 1])
    pattern = f"pipe:cat '{tmp_path}/s/{{00000..00001}}.tar'"
    index = build_index([pattern])
    assert (index.counts.tolist(), load_index([pattern]).counts.tolist()) == ([2, 1], [2, 1])
    assert index.offsets_path(0).is_relative_to(cache)
    assert index.offsets(1).num_samples == 1


def test_an_index_takes_few_bytes_per_shard(tmp_path):
    number = 100_000
    rows = np.zeros(number, row_dtype(0, 10))
    rows["name"], rows["count"] = packed(f"{i:06d}.tar" for i in range(number)), 10_000
    IndexFolder(str(tmp_path)).put_counts(ShardCounts(rows, "", ()))
    tracemalloc.start(1)
    try:
        index = load_index([f"{tmp_path}/{{000000..099999}}.tar"])
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(index.paths), index.num_samples) == (number, 10_000 * number)
    assert index.paths[number - 1] == f"{tmp_path}/099999.tar"
    assert kept < 40 * number
    assert peak < 200 * number  # the file, and 65,536 names as Python objects
