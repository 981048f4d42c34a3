"""A shard is whole or absent, equal for equal samples, and read back as it was given."""

import tarfile
from pathlib import Path

import pytest

from clipx.data.shard_writer import write_shard
from clipx.storage.files import open_ranges
from clipx.storage.tar import scan_tar

SAMPLES = [("a/0", {"txt": b"one", "jpg": b"1"}), ("b", {"seg.png": b"2", "_x": b"3", "": b"dropped"})]


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_members_come_back_under_their_names(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "new" / "0.tar", iter(SAMPLES)) == 2
    assert read(tmp_path / "new/0.tar") == {"a/0.jpg": b"1", "a/0.txt": b"one", "b._x": b"3", "b.seg.png": b"2"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["0.tar"]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        write_shard(tmp_path / name, SAMPLES)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


@pytest.mark.parametrize("key", ["k" * 300, "ключ/号", "d/" * 90 + "x"])
def test_any_name_is_read_back_by_the_index(tmp_path: Path, key: str) -> None:
    write_shard(tmp_path / "0.tar", [(key, {"txt": b"a"})])
    assert scan_tar(open_ranges(str(tmp_path / "0.tar"))).keys == [key.encode()]


def test_a_key_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    samples = [("a", {"jpg": b"1"}), ("a", {"txt": b"2"}), ("a-2", {"txt": b"3"}), ("a", {"txt": b"4"})]
    write_shard(tmp_path / "0.tar", samples)
    assert read(tmp_path / "0.tar") == {"a.jpg": b"1", "a-2.txt": b"2", "a-2-2.txt": b"3", "a-3.txt": b"4"}


def test_what_breaks_off_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    def samples():
        yield SAMPLES[0]
        raise OSError("disk full")

    write_shard(tmp_path / "0.tar", SAMPLES)
    before = (tmp_path / "0.tar").read_bytes()
    for name in ("0.tar", "1.tar"):
        with pytest.raises(OSError, match="disk full"):
            write_shard(tmp_path / name, samples())
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]
    assert (tmp_path / "0.tar").read_bytes() == before
