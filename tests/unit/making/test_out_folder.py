"""A folder of shards has one maker at a time, which touches nothing that it did not write."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import png

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.errors import InputError, RunError
from clipx.making import out_folder
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def make(source: Path, out: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Made:
    rows = open_rows([str(source)], SourceOptions())
    return make_shards(rows, str(out), MakeOptions(shard_size=2), workers=1, on_progress=on_progress)


def stop(done: int, total: int) -> None:
    raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    """All but the index, which holds the times of the shards."""
    files = [path for path in folder.rglob("*") if path.is_file() and "clipx-index" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_of_two_at_once_one_makes_all_and_the_other_says_so(source: Path, tmp_path: Path) -> None:
    said = []

    def second(done: int, total: int) -> None:
        with pytest.raises(InputError, match=r"out is being written by process \d+ on .*; wait for it or") as caught:
            make(source, tmp_path / "out")
        said.append(str(caught.value))

    assert make(source, tmp_path / "out", on_progress=second).num_samples == 6
    assert len(said) == 3
    assert not any("\n" in line for line in said)
    make(source, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert make(source, tmp_path / "out").num_samples == 6  # complete: nothing to wait for


def test_the_lock_is_that_of_a_living_process(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "out", on_progress=stop)
    assert (tmp_path / "out" / ".making" / "lock").read_text()
    assert make(source, tmp_path / "out").num_samples == 6
    assert not (tmp_path / "out" / ".making").exists()


def test_one_that_begins_while_another_ends_finds_it_complete(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, request = tmp_path / "out", {"source": "x"}
    claim = out_folder.claim

    def wait_for_lock(folder: Path, path: Path) -> object:
        (folder / "make.json").write_text(json.dumps({"request": request, "made": {"num_shards": 1}}))
        return claim(folder, path)

    monkeypatch.setattr(out_folder, "claim", wait_for_lock)
    with out_folder.claimed(out, request) as made:
        assert made == {"num_shards": 1}
    assert [path.name for path in out.iterdir()] == ["make.json"]


def test_a_lock_without_a_request_is_of_one_that_has_just_begun(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".making").mkdir(parents=True)
    (tmp_path / "out" / ".making" / "lock").touch()
    assert make(source, tmp_path / "out").num_samples == 6


def test_a_full_disk_at_the_end_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr("clipx.making.make.write_file", refuse)
        with pytest.raises(RunError, match=r"out cannot be written: .*No space left.*; run the same command again"):
            make(source, tmp_path / "out")
        patch.setattr("clipx.making.out_folder.write_file", refuse)
        with pytest.raises(InputError, match=r"--out .* cannot be used: No space left on device"):
            make(source, tmp_path / "new")
    seen: list[int] = []
    assert make(source, tmp_path / "out", on_progress=lambda done, _: seen.append(done)).num_samples == 6
    assert seen == []


def test_the_home_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(source, Path("~/out"))
    assert (tmp_path / "out" / "make.json").is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("make.json", b'{"all": "test"}', r"make\.json is not of clipx data make"),
        ("make.json", b"all: test", r"make\.json is not of clipx data make"),
        ("make.json", b'{"request": {"source": "another"}}', "was begun otherwise"),
        (".making/request.json", b'{"request": {"source": "another"}}', "was begun otherwise"),
        (".making/request.json", b"[]", r"request\.json is not of clipx data make"),
        (".making/notes", b"mine", "holds something else"),
        (".making/00000.tar", b"mine", "holds something else"),
        ("00000.tar", b"mine", "holds something else"),
        (".00000.tar.gz", b"mine", "holds something else"),
        ("left_out.jsonl", b"mine", "holds something else"),
    ],
)
def test_a_folder_of_others_is_refused_and_left_alone(
    source: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {name: content}


def test_what_others_put_into_it_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(source, out, on_progress=stop)
    others = {"00001.tar": b"mine", ".x.tar.gz": b"mine", "notes.txt": b"mine", ".making/notes": b"mine"}
    for name, content in others.items():
        (out / name).write_bytes(content)
    with pytest.raises(RunError, match=r"00001\.tar was not made by this command; move it elsewhere"):
        make(source, out)
    (out / "00001.tar").rename(out / "z.tar")
    with pytest.raises(RunError, match=r"also holds z\.tar, which this command did not make"):
        make(source, out)
    (out / "z.tar").rename(tmp_path / "z.tar")
    assert make(source, out).num_samples == 6
    del others["00001.tar"]
    assert {name: contents(out).get(name) for name in others} == others
    make(source, tmp_path / "alone")
    assert {**contents(tmp_path / "alone"), **others} == contents(out)


def test_a_process_killed_before_it_moved_a_shard_goes_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(source, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        make(source, out, on_progress=stop)
    (out / "00000.tar").rename(out / ".making" / "00000.tar")
    (out / "00001.tar").write_bytes((tmp_path / "alone" / "00001.tar").read_bytes())  # of one that outlived its parent
    seen: list[int] = []
    assert make(source, out, on_progress=lambda done, _: seen.append(done)).num_samples == 6
    assert seen == [4, 6]  # the report of the first says that it is done
    assert contents(out) == contents(tmp_path / "alone")
