"""Which files of embeddings a reader keeps mapped."""

import resource
from pathlib import Path

import pytest
from teacher_stores import data_of, taught, teacher, write_noise

from clipx.data.columns import RawSample
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.teachers import reader as module
from clipx.data.teachers.shard_file import ShardFile


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Reads a sample of each of some shards of 20, one after the other; gives the files that were mapped."""
    shards = write_noise(tmp_path / "s", [1] * 20)
    reader = taught(data_of(shards), tmp_path / "out", teacher("small")).column_reader(["small"])
    ref = SampleRef(source=0, shard=0, index=0, epoch=0, sample_id=0)
    found: list[str] = []

    def watched(path: Path, **options: object) -> ShardFile:
        found.append(path.stem)
        return ShardFile(path, **options)  # type: ignore[arg-type]

    def read(*numbers: int) -> list[int]:
        for number in numbers:
            name = SampleName(shards[number], f"{number:06d}", ())
            texts = [f"picture {number}"]
            reader.read(RawSample(members={}, texts=texts, ref=ref, name=lambda name=name: name, view=0))
        return [int(stem) for stem in found]

    monkeypatch.setattr(module, "ShardFile", watched)
    return read


def test_the_file_that_was_used_last_stays(mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    assert mapped(0, 1, 0, 2, 0, 2, 1) == [0, 1, 2, 1]


def test_no_more_are_open_than_descriptors_allow(mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (12 * 18, 1024))
    assert mapped(*range(20), *range(2, 20)) == list(range(20))  # the last 18 are there
    assert mapped(1) == [*range(20), 1]
