import os
import sys

import fsspec
import numpy as np
import pytest

from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.shard_list import expand_shards, name_shards
from clipx.data.index.shard_paths import ShardGroup, ShardPaths, found_rows, naturally_sorted, packed
from clipx.errors import InputError


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def names(paths):
    return [os.path.basename(path) for path in paths]


def test_paths_are_a_sequence_of_strings():
    paths = ShardPaths(
        [
            ShardGroup("s3://b/a/", packed(["0.tar", "ключ.tar"])),
            ShardGroup("", packed([])),
            ShardGroup("", packed(["x"])),
        ]
    )
    everything = ["s3://b/a/0.tar", "s3://b/a/ключ.tar", "x"]
    assert list(paths) == everything
    assert [paths[i] for i in range(3)] == [paths[i] for i in range(-3, 0)] == everything
    assert paths[np.int64(1)] == everything[1]
    assert paths[1:] == everything[1:]
    assert (len(paths), paths.locate(2)) == (3, (2, 0))
    assert "x" in paths
    for outside in (3, -4):
        with pytest.raises(IndexError):
            paths[outside]


def test_half_a_million_names_are_small_and_in_order():
    named = name_shards(["s3://bucket/{000000..499999}.tar"], RemoteFolders())  # asks nothing of the store
    (run,) = named.paths.runs
    assert run.names.nbytes == 500_000 * len("000000.tar")
    assert (named.paths[0], named.paths[-1]) == ("s3://bucket/000000.tar", "s3://bucket/499999.tar")
    folders = name_shards(["s3://bucket/{0..99}/{00000..00999}.tar"], RemoteFolders()).paths
    assert len({id(run.names) for run in folders.runs}) == 1
    assert (len(folders), folders[-1]) == (100_000, "s3://bucket/99/00999.tar")


@pytest.mark.parametrize(
    "ordered",
    [
        ["1.tar", "2.tar", "10.tar", "100.tar"],
        ["00.tar", "01.tar", "10.tar"],
        ["a-2-of-10.tar", "a-10-of-10.tar", "b-1-of-10.tar"],
        ["007.tar", "7.tar", "08.tar"],
        ["1.tar"],
        [],
    ],
)
def test_natural_order(ordered):
    assert naturally_sorted(packed(ordered[::-1])).tolist() == [name.encode() for name in ordered]


def test_found_rows():
    ordered = packed(["a", "bb", "c"])
    assert found_rows(ordered, packed(["c", "b", "bb", "d", "a"])).tolist() == [2, -1, 1, -1, 0]
    assert found_rows(packed([]), packed(["a"])).tolist() == [-1]


def test_expand_files_folders_globs_braces_and_lists(tmp_path, monkeypatch):
    root = touch(tmp_path / "a", "2.tar", "10.tar", "1.tar", "notes.txt", "10.tar.clipx-index")
    other = touch(tmp_path / "b", "x.tar", "y.tar", "plain")
    assert names(expand_shards([root])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([root + "/"])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([f"{root}/*"])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards([f"{tmp_path}/?"])) == ["1.tar", "2.tar", "10.tar", "x.tar", "y.tar"]
    assert names(expand_shards([f"{tmp_path}/*/1*.tar"])) == ["1.tar", "10.tar"]
    assert names(expand_shards([f"{tmp_path}/{{b,a}}"])) == ["1.tar", "2.tar", "10.tar", "x.tar", "y.tar"]
    assert names(expand_shards([f"{root}/{{10,1}}.tar"])) == ["1.tar", "10.tar"]
    assert names(expand_shards([f"{root}/{{1..2}}.tar"])) == ["1.tar", "2.tar"]
    assert names(expand_shards([f"{tmp_path}/{{b/y,a/1}}.tar"])) == ["1.tar", "y.tar"]
    assert names(expand_shards([f"{other}/y.tar::{root}/1*.tar", f"{other}/plain"])) == [
        "y.tar", "1.tar", "10.tar", "plain"
    ]  # fmt: skip
    assert list(expand_shards([f"file://{root}/1.tar"])) == [f"{root}/1.tar"]
    monkeypatch.chdir(root)
    assert list(expand_shards(["1.tar", "../b"])) == ["1.tar", "../b/x.tar", "../b/y.tar"]
    assert names(expand_shards(["."])) == ["1.tar", "2.tar", "10.tar"]
    assert names(expand_shards(["*.tar"])) == ["1.tar", "2.tar", "10.tar"]


def test_expand_commands():
    commands = expand_shards(["pipe:cat a::b/{9..10}.tar | awk '{print $1}' | tr -d '\\n'"])
    assert list(commands) == [f"pipe:cat a::b/{i}.tar | awk '{{print $1}}' | tr -d '\\n'" for i in (9, 10)]


def test_expand_remote():
    memory = fsspec.filesystem("memory")
    for name in ("r/0.tar", "r/1.tar", "r/a.txt", "s/0.tar", "s/odd"):
        memory.pipe(f"/expand/{name}", b"")
    base = "memory:///expand"
    assert names(expand_shards([f"{base}/r"])) == ["0.tar", "1.tar"]
    assert names(expand_shards([f"{base}/r/{{0..1}}.tar"])) == ["0.tar", "1.tar"]
    assert list(expand_shards([f"{base}/s/odd"])) == [f"{base}/s/odd"]
    both = expand_shards([f"{base}/*/0.tar"])
    assert names(both) == ["0.tar", "0.tar"]
    assert all(path.startswith("memory://") for path in both)
    for absent in ("t.tar", "t", "t/*.tar", "r/{0..40}.tar"):
        with pytest.raises(InputError, match="match no tar file; nothing is there: check the bucket"):
            expand_shards([f"{base}/{absent}"])


def test_a_remote_folder_is_listed_once(monkeypatch):
    memory = fsspec.filesystem("memory")
    for number in range(40):
        memory.pipe(f"/listed/{number:02d}.tar", b"x")
    calls, real = [], type(memory).ls
    monkeypatch.setattr(type(memory), "ls", lambda *a, **k: calls.append("ls") or real(*a, **k))
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: calls.append("info") or {"type": "directory"})
    assert len(expand_shards(["memory:///listed/{00..39}.tar"])) == 40
    assert sorted(calls) == ["info", "ls"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a/{1..3}.tar", r"a/3.tar' \(from 'a/\{1..3\}.tar'\) match no tar file"),
        ("a/*.tgz", r"shards 'a/\*.tgz' match no tar file"),
        ("empty", "shards 'empty' match no tar file"),
        ("absent/x.tar", "shards 'absent/x.tar' match no tar file"),
        ("a/1.tar/x.tar", "match no tar file"),
        ("folder.tar", "it is a folder: write folder.tar/"),
        ("packed", "2 compressed files are there, 0.tar.gz first: unpack"),
        ("deep", "subfolders are not searched: name deep/train"),
        ("a::", "shards '' match no tar file"),
        ("a/1.tar::./a/1.tar", r"shard ./a/1.tar is named twice \(again by './a/1.tar'\)"),
        ("a/{1,2,1}.tar", "shard a/1.tar is named twice"),
        ("a/{1", "cannot be listed: a brace is not closed"),
        ("nosuchprotocol://a/1.tar", "cannot be listed"),
    ],
)
def test_patterns_that_name_nothing_or_twice(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a", "1.tar", "2.tar", "c.tgz")
    touch(tmp_path / "empty")
    touch(tmp_path / "folder.tar")
    touch(tmp_path / "packed", "0.tar.gz", "1.tgz")
    touch(tmp_path / "deep" / "train", "0.tar")
    with pytest.raises(InputError, match=message) as caught:
        expand_shards([pattern])
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"shards 'gs://bucket/0.tar' cannot be listed: .*gcsfs"):
        expand_shards(["gs://bucket/0.tar"])


def test_hidden_names_are_no_shards_unless_they_are_named(tmp_path):
    """A folder that a Mac copied holds ._00000.tar beside 00000.tar, which ended training."""
    root = touch(tmp_path / "a", "00000.tar", "._00000.tar", ".part.tar")
    touch(tmp_path / "a" / ".trash", "9.tar")
    for pattern in (root, f"{root}/*", f"{root}/*.tar", f"{tmp_path}/*/*.tar", f"{tmp_path}/*", f"{tmp_path}/?/*0.tar"):
        assert names(expand_shards([pattern])) == ["00000.tar"]
    assert names(expand_shards([f"{root}/._00000.tar"])) == ["._00000.tar"]
    assert names(expand_shards([f"{root}/.*.tar"])) == ["._00000.tar", ".part.tar"]
    assert names(expand_shards([f"{root}/{{._,}}00000.tar"])) == ["._00000.tar", "00000.tar"]
    assert names(expand_shards([f"{root}/.trash"])) == ["9.tar"]


def test_hidden_names_of_a_store_are_no_shards():
    memory = fsspec.filesystem("memory")
    for name in ("0.tar", "._0.tar", ".x/1.tar"):
        memory.pipe(f"/hidden/{name}", b"x")
    for pattern in ("memory:///hidden", "memory:///hidden/*.tar", "memory:///hidden/**"):
        assert names(expand_shards([pattern])) == ["0.tar"]
    assert names(expand_shards(["memory:///hidden/._0.tar"])) == ["._0.tar"]
    assert names(expand_shards(["memory:///hidden/.x/*.tar"])) == ["1.tar"]


def test_what_exists_literally_is_meant_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("d1", "d2", "d[12]", "my data [v1]", "x{a,b}", "xa", "a::b", "deep/my [v1]", "deep/v"):
        touch(tmp_path / folder, *(f"{i}.tar" for i in range(4)))
    touch(tmp_path, "0[1].tar", "01.tar", "{2..3}.tar", "2.tar", "3.tar")
    touch(tmp_path / "deep" / "my [v1]", "s[0].tar", "s0.tar")

    def found(*patterns):
        return list(expand_shards(patterns))

    assert found("d[12]") == found("d[12]/") == [f"d[12]/{i}.tar" for i in range(4)]
    assert found("d[1]/0.tar") == ["d1/0.tar"]  # no folder of that name: a pattern
    assert found("my data [v1]/{0..3}.tar") == [f"my data [v1]/{i}.tar" for i in range(4)]
    assert found("my data [v1]/[12].tar") == ["my data [v1]/1.tar", "my data [v1]/2.tar"]
    assert found(f"{tmp_path}/my data [v1]") == [f"{tmp_path}/my data [v1]/{i}.tar" for i in range(4)]
    assert found("x{a,b}/0.tar") == ["x{a,b}/0.tar"]
    assert found("d{1,2}/0.tar") == ["d1/0.tar", "d2/0.tar"]
    assert found("0[1].tar") == ["0[1].tar"]
    assert found("0[12].tar") == ["01.tar"]
    assert found("{2..3}.tar") == ["{2..3}.tar"]
    assert found("{2,3}.tar") == ["2.tar", "3.tar"]
    assert found("a::b") == [f"a::b/{i}.tar" for i in range(4)]
    assert found("a::b/0.tar", "d1/0.tar::d2/0.tar") == ["a::b/0.tar", "d1/0.tar", "d2/0.tar"]
    assert found("*/my [v1]/[0-9].tar") == [f"deep/my [v1]/{i}.tar" for i in range(4)]
    assert found("de*/my [v1]/s[0].tar") == ["deep/my [v1]/s[0].tar"]
    assert found("file://" + str(tmp_path / "d[12]" / "0.tar")) == [f"{tmp_path}/d[12]/0.tar"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/d[12]/0.tar") == [f"{tmp_path}/d[12]/0.tar"]


def test_brackets_in_a_store():
    memory = fsspec.filesystem("memory")
    for name in ("my [v1]/0.tar", "my [v1]/1.tar", "my v/0.tar", "s[0].tar", "s0.tar"):
        memory.pipe(f"/brackets/{name}", b"x")
    base = "memory:///brackets"
    assert list(expand_shards([f"{base}/my [v1]"])) == [f"{base}/my [v1]/{i}.tar" for i in range(2)]
    assert list(expand_shards([f"{base}/my [v1]/{{0..1}}.tar"])) == [f"{base}/my [v1]/{i}.tar" for i in range(2)]
    assert list(expand_shards([f"{base}/s[0].tar"])) == [f"{base}/s[0].tar"]
    assert names(expand_shards([f"{base}/s[0-5].tar"])) == ["s0.tar"]


def test_a_folder_that_links_lead_to_twice_is_visited_once(tmp_path):
    root = touch(tmp_path / "a", "0.tar", "1.tar")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert names(expand_shards([f"{root}/*"])) == ["0.tar", "1.tar"]
    assert list(expand_shards([f"{tmp_path}/?"])) == [f"{root}/0.tar", f"{root}/1.tar"]
    assert list(expand_shards([f"{tmp_path}/b"])) == [f"{tmp_path}/b/0.tar", f"{tmp_path}/b/1.tar"]
    with pytest.raises(InputError, match=r"b/0.tar is named twice"):
        expand_shards([root, f"{tmp_path}/b"])


def test_what_is_no_file_is_named_and_not_opened(tmp_path):
    root = touch(tmp_path / "a", "0.tar")
    os.mkfifo(tmp_path / "a" / "1.tar")
    for pattern in (root, f"{root}/*.tar", f"{root}/{{0,1}}.tar", f"{root}/1.tar"):
        with pytest.raises(InputError, match=r"a/1.tar' .*it is a fifo, not a file: leave it out"):
            expand_shards([pattern])
    (tmp_path / "a" / "1.tar").unlink()
    (tmp_path / "a" / "1.tar").symlink_to("1.tar")
    for pattern in (root, f"{root}/*.tar", f"{root}/1.tar"):
        with pytest.raises(InputError, match=r"a/1.tar' .*it is a link that leads nowhere: mend or remove it"):
            expand_shards([pattern])


def test_an_empty_home_is_not_the_root(tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(b"")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("clipx.config.paths._home_of_account", lambda path: str(tmp_path))
    assert list(expand_shards(["~/0.tar"])) == [f"{tmp_path}/0.tar"]
