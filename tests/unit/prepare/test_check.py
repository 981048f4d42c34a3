"""What training would not take is found, and only that; repaired shards hold all that is good."""

import pickle
import tarfile
from pathlib import Path

import pytest
from shard_files import pair, png, write_shards, write_tar

from clipx.config.data import DataConfig, Source, sources
from clipx.errors import InputError
from clipx.prepare.check import Health, check_shards


def source_of(folder: Path, **data) -> tuple[Source, ...]:
    return sources(DataConfig(train=[str(folder)], **data))


def check(folder: Path, *, repair: Path | None = None, workers: int = 1, **data) -> Health:
    return check_shards(source_of(folder, **data), repair=repair, workers=workers)


def faults(health: Health) -> list[tuple[str, str | None, str]]:
    return [(Path(problem.shard).name, problem.key, problem.fault) for problem in health.problems]


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Four shards, the first good, the second with bad samples, the third cut, the last no tar."""
    folder = tmp_path / "shards"
    replaced = {
        3: {"png": b"no picture", "txt": b"a"},
        4: {"png": png(4)[:-40], "txt": b"a"},
        5: {"png": png(5), "txt": b"  "},
        6: {"txt": b"a"},
        7: {"png": png(7)},
        8: pair(8) | {"json": b"{", "cls": b"8"},
    }
    write_shards(folder, [3, 7, 4], replaced=replaced)
    cut = folder / "00002.tar"
    cut.write_bytes(cut.read_bytes()[: 512 * 9 + 20])
    (folder / "00003.tar").write_bytes(b"no tar" * 200)
    return folder


def test_good_shards_have_no_problems(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 3])
    health = check(tmp_path)
    assert [(shard.num_samples, shard.num_good) for shard in health.shards] == [(2, 2), (3, 3)]
    assert (health.problems, health.by_fault()) == ([], {})


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])  # 2: imports torch anew
def test_every_fault_is_found(bad: Path, workers: int) -> None:
    health = check(bad, workers=workers)
    assert faults(health) == [
        ("00001.tar", "000003", "unreadable picture"),
        ("00001.tar", "000004", "unreadable picture"),
        ("00001.tar", "000005", "no caption"),
        ("00001.tar", "000006", "no picture"),
        ("00001.tar", "000007", "no caption"),
        ("00002.tar", None, "damaged shard"),
        ("00002.tar", "000012", "cut sample"),
        ("00003.tar", None, "unreadable shard"),
    ]
    assert health.by_fault()["unreadable picture"] == 2
    assert [(shard.num_samples, shard.num_good) for shard in health.shards] == [(3, 3), (7, 2), (3, 2), (0, 0)]
    assert "10 bytes" in health.problems[0].detail


def test_what_processes_are_sent_finds_the_same(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = check(bad)
    monkeypatch.setattr(
        "clipx.prepare.check.in_processes", lambda work, jobs, workers: map(pickle.loads(pickle.dumps(work)), jobs)
    )
    assert check(bad) == here


def test_what_is_good_depends_on_the_source(bad: Path) -> None:
    health = check(bad / "00001.tar", caption_key="cls", class_names=[str(n) for n in range(9)])
    assert {problem.key for problem in health.problems} == {f"{n:06}" for n in (3, 4, 5, 6, 7, 9)}
    assert check(bad / "00000.tar", image_key="jpg").by_fault() == {"no picture": 3}


def test_repaired_shards_hold_the_good_samples(bad: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in bad.glob("*.tar")}
    health = check(bad, repair=tmp_path / "new")
    assert [shard.repaired for shard in health.shards] == [False, True, True, False]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["00001.tar", "00002.tar"]
    assert contents(tmp_path / "new" / "00001.tar") == {
        "000008.cls": b"8",
        "000008.json": b"{",
        "000008.png": png(8),
        "000008.txt": b"picture 8",
        "000009.png": png(9),
        "000009.txt": b"picture 9",
    }
    assert not check(tmp_path / "new").problems
    assert {path: path.read_bytes() for path in bad.glob("*.tar")} == before


def test_a_missing_end_mark_is_damage_that_costs_no_sample(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "in", [2])
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: 512 * 8])
    health = check(tmp_path / "in", repair=tmp_path / "new")
    assert faults(health) == [("00000.tar", None, "damaged shard")]
    assert health.shards[0].num_good == 2
    assert not check(tmp_path / "new").problems


def test_a_shard_without_samples_is_bad(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("README", b"hello")])
    assert faults(check(tmp_path, repair=tmp_path / "new")) == [("a.tar", None, "no samples")]
    assert not (tmp_path / "new").exists()


def test_pictures_that_need_pillow_are_counted(tmp_path: Path) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(buffer, "jpeg")
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "jpeg")
    write_shards(tmp_path, [2], replaced={n: {"jpg": b.getvalue(), "txt": b"a"} for n, b in enumerate((buffer, plain))})
    (shard,) = check(tmp_path).shards
    assert (shard.num_good, shard.num_by_pillow, shard.num_deep) == (2, 1, 0)


def test_pictures_of_sixteen_bits_are_counted(tmp_path: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, "png")
    write_shards(tmp_path, [3], replaced={1: {"png": deep.getvalue(), "txt": b"a"}})
    (shard,) = check(tmp_path).shards
    assert (shard.num_good, shard.num_deep) == (3, 1)


def test_progress_counts_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [1, 1])
    seen: list[tuple[int, int]] = []
    check_shards(source_of(tmp_path), workers=1, on_progress=lambda *both: seen.append(both))
    assert seen == [(1, 2), (2, 2)]


def test_originals_are_never_written_to(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [1])
    write_shards(tmp_path / "b", [1])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="is where the shards lie"):
        check(tmp_path / "a", repair=tmp_path / "link")
    both = sources(DataConfig(train=[str(tmp_path / "a"), str(tmp_path / "b")]))
    with pytest.raises(InputError, match=r"2 of the shards are called 00000\.tar; repair one folder at a time"):
        check_shards(both, repair=tmp_path / "new", workers=1)
