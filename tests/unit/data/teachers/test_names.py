"""Shards are known by the end of their address that no other has."""

import pytest

from clipx.data.teachers.names import StoredShards, distinct_names
from clipx.errors import RunError


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/0.tar", "/a/1.tar"], ["0.tar", "1.tar"]),
        (["/a/0.tar", "/b/0.tar", "/b/1.tar"], ["a/0.tar", "b/0.tar", "1.tar"]),
        (["/x/a/0.tar", "/y/a/0.tar"], ["x/a/0.tar", "y/a/0.tar"]),
        (["s3://bucket/a/0.tar", "/a/0.tar"], ["bucket/a/0.tar", "/a/0.tar"]),
        (["https://host/0.tar?X-Amz-Signature=a/b"], ["0.tar"]),
        (["pipe:curl https://host/0.tar"], ["0.tar"]),
        (["/a/0.tar", "/a/0.tar"], ["/a/0.tar", "/a/0.tar"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]) -> None:
    assert distinct_names(paths) == names


def test_a_shard_is_found_wherever_it_lies(tmp_path, monkeypatch) -> None:
    shards = StoredShards(["a/0.tar", "b/0.tar", "1.tar"])
    assert [shards.find(path) for path in ("/other/a/0.tar", "s3://x/b/0.tar", "/y/1.tar")] == [0, 1, 2]
    assert [shards.find(path) for path in ("/other/c/0.tar", "0.tar", "/a/2.tar")] == [None] * 3
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert shards.number("0.tar") == shards.number("0.tar") == 1
    with pytest.raises(RunError, match=r"shard 2\.tar was not taught; run `clipx data teach`"):
        shards.number("2.tar")
