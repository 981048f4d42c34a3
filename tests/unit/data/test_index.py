import logging
import os

import fsspec
import numpy as np
import pytest
from shard_files import pair, write_shards, write_tar

from clipx.data import index as index_module
from clipx.data.files import file_state
from clipx.data.index import CATALOGUE, build_index, expand_shards, load_index
from clipx.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def scanned(monkeypatch):
    """Paths of the shards that are scanned, in any order."""
    paths, real = [], index_module._index_shard
    monkeypatch.setattr(index_module, "_index_shard", lambda path, *rest: paths.append(path) or real(path, *rest))
    return paths


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def names(paths):
    return [os.path.basename(path) for path in paths]


def test_expand_files_folders_globs_braces_and_lists(tmp_path, monkeypatch):
    root = touch(tmp_path / "a", "2.tar", "10.tar", "1.tar", "notes.txt", "10.tar.clipx-index")
    other = touch(tmp_path / "b", "x.tar", "y.tar", "plain")
    assert names(expand_shards([root])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([root + "/"])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([f"{root}/*"])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([f"{tmp_path}/?"])) == ["1.tar", "2.tar", "10.tar", "x.tar", "y.tar"]
    assert names(expand_shards([f"{root}/{{10,1}}.tar"])) == ["1.tar", "10.tar"]
    assert names(expand_shards([f"{root}/{{1..2}}.tar"])) == ["1.tar", "2.tar"]
    assert names(expand_shards([f"{other}/y.tar::{root}/1*.tar", f"{other}/plain"])) == [
        "y.tar", "1.tar", "10.tar", "plain"
    ]  # fmt: skip
    assert expand_shards([f"file://{root}/1.tar"]) == [f"{root}/1.tar"]
    monkeypatch.chdir(root)
    assert expand_shards(["1.tar", "../b"]) == ["1.tar", "../b/x.tar", "../b/y.tar"]
    assert names(expand_shards(["."])) == ["1.tar", "2.tar", "10.tar"]


def test_expand_remote():
    memory = fsspec.filesystem("memory")
    for name in ("r/0.tar", "r/1.tar", "r/a.txt", "s/0.tar"):
        memory.pipe(f"/expand/{name}", b"")
    base = "memory:///expand"
    assert names(expand_shards([f"{base}/r"])) == ["0.tar", "1.tar"]
    assert names(expand_shards([f"{base}/r/{{0..1}}.tar"])) == ["0.tar", "1.tar"]
    both = expand_shards([f"{base}/*/0.tar"])
    assert names(both) == ["0.tar", "0.tar"]
    assert all(path.startswith("memory://") for path in both)
    with pytest.raises(InputError, match="match no tar file"):
        expand_shards([f"{base}/t.tar"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a/{1..3}.tar", r"a/3.tar' \(from 'a/\{1..3\}.tar'\) match no tar file"),
        ("a/*.tgz", r"shards 'a/\*.tgz' match no tar file"),
        ("empty", "shards 'empty' match no tar file"),
        ("absent/x.tar", "shards 'absent/x.tar' match no tar file"),
        ("a/1.tar/x.tar", "match no tar file"),
        ("packed", "2 compressed files are there, 0.tar.gz first: unpack"),
        ("deep", "subfolders are not searched: name deep/train"),
        ("a::", "shards '' match no tar file"),
        ("a/1.tar::./a/1.tar", "named twice"),
        ("a/{1", "cannot be listed"),
        ("nosuchprotocol://a/1.tar", "cannot be listed"),
    ],
)
def test_patterns_that_name_nothing_or_twice(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a", "1.tar", "2.tar", "c.tgz")
    touch(tmp_path / "empty")
    touch(tmp_path / "packed", "0.tar.gz", "1.tgz")
    touch(tmp_path / "deep" / "train", "0.tar")
    with pytest.raises(InputError, match=message) as caught:
        expand_shards([pattern])
    assert "\n" not in str(caught.value)


def test_build_then_load(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 1, 4])
    progress = []
    built = build_index([str(tmp_path / "s")], on_progress=lambda *done: progress.append(done))
    assert built.paths == tuple(paths)
    assert built.counts.dtype == np.int64
    assert (built.counts.tolist(), built.num_samples) == ([3, 1, 4], 8)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    loaded = load_index([str(tmp_path / "s")])
    again = build_index([f"{tmp_path}/s/00001.tar"])
    assert (loaded.paths, loaded.counts.tolist()) == (built.paths, [3, 1, 4])
    assert again.counts.tolist() == [1]
    assert sorted(scanned) == paths
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == before
    assert all(built.sidecar_path(shard).parent == tmp_path / "s" for shard in range(3))


def test_one_catalogue_serves_other_selections_and_spellings(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [3, 1, 4])
    monkeypatch.chdir(tmp_path)
    assert build_index(["s/00000.tar", "./s/00001.tar", f"{tmp_path}/s/00002.tar"]).counts.tolist() == [3, 1, 4]
    assert load_index([f"{tmp_path}/s"]).counts.tolist() == [3, 1, 4]


def test_fingerprint_is_names_and_counts_not_places(tmp_path):
    def fingerprint(folder, counts):
        write_shards(tmp_path / folder, counts)
        return build_index([str(tmp_path / folder)]).fingerprint()

    assert fingerprint("a", [3, 1]) == fingerprint("b", [3, 1]) != fingerprint("c", [1, 3])
    os.rename(tmp_path / "b" / "00001.tar", tmp_path / "b" / "2.tar")
    assert build_index([str(tmp_path / "b")]).fingerprint() != fingerprint("a", [3, 1])


def test_changed_shard_is_scanned_again_and_lost_catalogue_is_not(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 1, 4])
    build_index([str(tmp_path / "s")])
    scanned.clear()
    (tmp_path / "s" / CATALOGUE).unlink()
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 1, 4]
    assert scanned == []  # an interrupted first scan goes on where it was
    os.utime(paths[0], ns=(0, file_state(paths[0]).mtime_ns + 1))
    write_shards(tmp_path / "t", [2])
    os.replace(tmp_path / "t" / "00000.tar", paths[1])
    (tmp_path / "s" / "00002.tar.clipx-index").unlink()
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 2, 4]
    assert sorted(scanned) == paths


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{}",
        '{"version": 1}',
        '{"version": 1, "shards": []}',
        '{"version": 1, "shards": {"00000.tar": 3}}',
        '{"version": 1, "shards": {"00000.tar": []}}',
        '{"version": 1, "shards": {"00000.tar": [3, 1]}}',
        '{"version": 1, "shards": {"00000.tar": ["three", SIZE, TIME]}}',
        '{"version": 1, "shards": {"00000.tar": [3, 1, 2, 3]}}',
    ],
)
def test_a_catalogue_of_another_shape_is_made_again(tmp_path, content):
    (path,) = write_shards(tmp_path / "s", [3])
    build_index([str(tmp_path / "s")])
    size, time = file_state(path)
    (tmp_path / "s" / CATALOGUE).write_text(content.replace("SIZE", str(size)).replace("TIME", str(time)))
    assert build_index([str(tmp_path / "s")]).counts.tolist() == [3]
    assert load_index([str(tmp_path / "s")]).counts.tolist() == [3]


def test_index_dir_and_cache_when_the_folder_cannot_be_written(tmp_path, monkeypatch, cache, scanned):
    write_shards(tmp_path / "a" / "s", [3])
    write_shards(tmp_path / "b" / "s", [4])
    both = [str(tmp_path / "a" / "s"), str(tmp_path / "b" / "s")]
    assert build_index(both, index_dir=tmp_path / "index").counts.tolist() == [3, 4]
    assert load_index(both, index_dir=tmp_path / "index").counts.tolist() == [3, 4]
    assert names((tmp_path / "a" / "s").iterdir()) == ["00000.tar"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    scanned.clear()
    built = build_index(both)
    assert len(scanned) == 2
    assert built.sidecar_path(0).is_relative_to(cache)
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


def test_remote_shards_are_indexed_in_the_cache(tmp_path, cache):
    write_shards(tmp_path / "s", [5])
    fsspec.filesystem("memory").pipe("/index/0.tar", (tmp_path / "s" / "00000.tar").read_bytes())
    built = build_index(["memory:///index"])
    assert built.counts.tolist() == [5] == load_index(["memory:///index"]).counts.tolist()
    assert built.sidecar_path(0).is_relative_to(cache)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a" * 200, "shard .*x.tar is no tar file; leave it out, or make it again"),
        (b"\x1f\x8b" + bytes(600), "shard .*x.tar is compressed; unpack it to a plain tar"),
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

    monkeypatch.setattr(index_module, "open_ranges", fail)
    with pytest.raises(InputError, match=r"x.tar cannot be read: Permission denied; check"):
        build_index([str(tmp_path)])
