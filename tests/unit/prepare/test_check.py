"""What training would not take is found, and only that; repaired shards hold all that is good."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from shard_files import pair, png, write_shards, write_tar

from clipx.config.data import DataConfig, Source, sources
from clipx.errors import InputError, RunError
from clipx.prepare.check import Health, check_shards
from clipx.prepare.repair import RepairFolder


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
    assert sorted(path.name for path in (tmp_path / "new").glob("[0-9]*")) == ["00001.tar", "00002.tar"]
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


def test_members_apart_are_one_problem_and_repaired(tmp_path: Path) -> None:
    """Pictures first, then captions, as plain `tar cf` writes them: the captions' key was blamed."""
    members = [(f"{i}.{e}", content) for e in ("png", "txt") for i in range(4) for content in [pair(i)[e]]]
    write_tar(tmp_path / "in" / "0.tar", members)
    health = check(tmp_path / "in", repair=tmp_path / "new")
    assert faults(health) == [("0.tar", None, "split samples")]
    assert "`tar --sort=name`" in health.problems[0].detail
    assert [(shard.num_samples, shard.num_good, shard.repaired) for shard in health.shards] == [(8, 0, True)]
    assert contents(tmp_path / "new" / "0.tar") == dict(sorted(members))
    assert not check(tmp_path / "new").problems


def test_joined_tars_are_damage_and_repaired_whole(tmp_path: Path) -> None:
    paths = [
        Path(path) for path in write_shards(tmp_path / "in", [3, 2], replaced={1: {"txt": b"a"}, 4: {"png": b"x"}})
    ]
    joined = tmp_path / "joined" / "0.tar"
    joined.parent.mkdir()
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    health = check(joined.parent, repair=tmp_path / "new")
    assert faults(health) == [("0.tar", None, "damaged shard"), ("0.tar", "000001", "no picture")]
    assert [(shard.num_samples, shard.num_good) for shard in health.shards] == [(3, 2)]  # what training sees
    assert {name[:6] for name in contents(tmp_path / "new" / "0.tar")} == {"000000", "000002", "000003"}
    twice = joined.with_name("1.tar")
    twice.write_bytes(2 * paths[0].read_bytes())
    check(twice, repair=tmp_path / "twice")
    assert {name.partition(".")[0] for name in contents(tmp_path / "twice" / "1.tar")} == {
        "000000", "000002", "000000-2", "000002-2",
    }  # fmt: skip


def test_links_and_many_members_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("0.png", png(0)), ("0.txt", b"a"), ("1.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.LNKTYPE, "0.png"
        tar.addfile(info)
    write_tar(tmp_path / "1.tar", [(f"frame.{i:06d}.png", b"x") for i in range(2000)])
    health = check(tmp_path)
    assert faults(health) == [
        ("0.tar", None, "links"),
        ("0.tar", "1", "links"),
        ("1.tar", None, "many members"),
        ("1.tar", "frame", "no caption"),
    ]
    assert (
        "1 hard link, which is no file (1.png); make the tar with `tar --hard-dereference`" in health.problems[0].detail
    )
    link = "1.png is a hard link, which is no file; make the tar with `tar --hard-dereference`"
    assert health.problems[1].detail == link
    assert all(len(problem.detail) < 500 for problem in health.problems)


def test_only_what_was_repaired_from_the_same_shards_is_replaced(tmp_path: Path) -> None:
    """It wrote over another set's shards of the same names."""
    new = tmp_path / "new"
    write_shards(tmp_path / "a", [2], replaced={1: {"txt": b"a"}})
    write_shards(tmp_path / "b", [2, 1], replaced={0: {"txt": b"b"}})
    write_shards(new, [3])
    others = (new / "00000.tar").read_bytes()
    with pytest.raises(InputError, match=r"new holds 00000\.tar, which were not written there from these shards"):
        check(tmp_path / "a", repair=new)
    assert (new / "00000.tar").read_bytes() == others
    (new / "00000.tar").unlink()
    for _ in range(2):  # again, over its own
        assert [shard.repaired for shard in check(tmp_path / "a", repair=new).shards] == [True]
    repaired = (new / "00000.tar").read_bytes()
    with pytest.raises(InputError, match=r"holds 00000\.tar"):
        check(tmp_path / "b", repair=new)  # repaired, but from another set
    assert (new / "00000.tar").read_bytes() == repaired
    (new / "00000.tar").write_bytes(repaired + bytes(512))
    with pytest.raises(InputError, match=r"or changed since; choose an empty folder"):
        check(tmp_path / "a", repair=new)
    assert sorted(path.name for path in new.iterdir()) == [".00000.tar.clipx-repair", "00000.tar"]


def test_of_two_repairs_at_once_one_wins_and_the_other_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "new"
    for folder in "ab":
        write_shards(tmp_path / folder, [2], replaced={1: {"txt": folder.encode()}})
    real = RepairFolder.require_free

    def require_free(self: RepairFolder, shards: list[str]) -> None:
        monkeypatch.setattr(RepairFolder, "require_free", real)
        real(self, shards)
        check(tmp_path / "b", repair=new)  # after the other looked

    monkeypatch.setattr(RepairFolder, "require_free", require_free)
    with pytest.raises(RunError, match=r"00000\.tar is not replaced: .* belongs to another shard"):
        check(tmp_path / "a", repair=new)
    assert not check(new).problems


def test_a_repair_that_was_broken_off_goes_on_and_another_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "ab":
        write_shards(tmp_path / folder, [2], replaced={1: {"txt": folder.encode()}})

    def killed(path: Path, samples: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clipx.prepare.repair.write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            check(tmp_path / "a", repair=tmp_path / "new")
    with pytest.raises(RunError, match=r"\.clipx-repair says that it belongs to another shard"):
        check(tmp_path / "b", repair=tmp_path / "new")
    assert [shard.repaired for shard in check(tmp_path / "a", repair=tmp_path / "new").shards] == [True]


def test_a_sample_of_gigabytes_is_bad_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipx.storage.tar.MAX_SAMPLE_BYTES", 1000)
    write_shards(tmp_path, [2], replaced={1: {"png": bytes(1001), "txt": b"a"}})
    assert faults(check(tmp_path)) == [("00000.tar", "000001", "large sample")]
