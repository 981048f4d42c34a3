"""A run that would not see what its teachers saw is refused, with one line, before anything is read."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shard_files import write_shards
from teacher_stores import AUGMENT, SIZE, data_of, sample, taught, teacher, write_noise
from tiny_clip import tiny_model_config

from clipx.config.data import SourceConfig, sources
from clipx.config.load import load_config
from clipx.config.phases import phase_at
from clipx.data.build import build_order, open_samples
from clipx.data.columns import RawSample, Wanted
from clipx.data.filters.filters import SampleFilter
from clipx.data.index.shard_index import build_index
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.teachers import open_teachers
from clipx.errors import InputError, RunError
from clipx.prepare.teach import teach
from clipx.train.build_data import phase_reader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished store of one small teacher, and its shards."""
    root = tmp_path_factory.mktemp("store")
    shards = write_noise(root / "s")
    taught(data_of(shards), root / "out", teacher("small"))
    return root / "out", shards


def open_with(folder: Path, shards: Sequence[str], **options: Any) -> Any:
    """The samples of a run with the store."""
    data, image = data_of(shards, **options), tiny_model_config().image
    described = sources(data)
    indexes = [build_index(source.shards, index_dir=source.index) for source in described]
    teachers = open_teachers(str(folder))
    return open_samples(indexes, described, data=data, seed=0, image_size=SIZE, image=image, teachers=teachers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "decode": (
        {"decode": "pil"},
        r"was taught with data\.decode=fast, not pil; set it back, or run `clipx data teach`",
    ),
    "flip": ({"augment": replace(AUGMENT, flip=0.0)}, r"taught with data\.augment\.flip=0\.5, not 0\.0"),
    "crop": ({"augment": replace(AUGMENT, crop_scale=(0.2, 1.0))}, r"crop_scale=\[0\.3, 1\.0\], not \[0\.2, 1\.0\]"),
    "colours": ({"augment": replace(AUGMENT, color_jitter=None)}, r"data\.augment\.color_jitter=\{.*\}, not None"),
    "picture": ({"image_key": "jpg"}, r"data\.image_key=jpg;jpeg;png;webp, not jpg"),
    "captions": ({"caption_key": {"txt": 1, "json:short": 1}}, "under txt, json:long, not under json:short"),
    "templates": ({"templates": ["a {c}"]}, r"data\.templates goes beyond what teachers know"),
    "classes": ({"class_names": ["a", "b"]}, r"was taught with other data\.class_names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_reading_is_refused(store: tuple[Path, list[str]], name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as refusal:
        open_with(*store, **options)
    assert "\n" not in str(refusal.value)


def test_what_does_not_change_the_views_is_taken(store: tuple[Path, list[str]]) -> None:
    folder, shards = store
    open_with(folder, shards, caption_key="json:long")
    open_with(folder, shards[1:], caption_key={"txt": 5.0}, captions_per_image=2, equal_captions="ignored")
    open_with(
        folder, [], train=None, sources={"a": SourceConfig(shards=shards[:1]), "b": SourceConfig(shards=shards[1:])}
    )


def test_a_mixture_with_one_other_augmentation(store: tuple[Path, list[str]]) -> None:
    folder, shards = store
    mixed = {
        "a": SourceConfig(shards=shards[:1]),
        "b": SourceConfig(shards=shards[1:], augment=replace(AUGMENT, flip=0.1)),
    }
    with pytest.raises(InputError, match=r"taught with data\.sources\.b\.augment\.flip=0\.5, not 0\.1"):
        open_with(folder, [], train=None, sources=mixed)


def test_other_shards(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = store[0]
    new = write_noise(tmp_path / "s", (7, 5, 6, 3, 2))
    with pytest.raises(InputError, match=r"was not taught shard .*00003\.tar and 1 more of 5"):
        open_with(folder, new)
    more = write_noise(tmp_path / "more", (9,))
    with pytest.raises(InputError, match=r"was taught another shard .*00000\.tar: of [\d,]+ bytes, not [\d,]+"):
        open_with(folder, more)


def test_a_filter_leaves_out_what_was_taught(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, shards = store
    small = SampleFilter.parse(["width < 60"])
    assert build_index(shards, index_dir=tmp_path / "index", filters=small).num_samples < 18
    open_with(folder, shards, index=str(tmp_path / "index"))
    filtered = data_of(shards, index=str(tmp_path / "index"))
    taught(filtered, tmp_path / "out", teacher("small"))
    open_with(tmp_path / "out", shards, index=str(tmp_path / "index"))
    with pytest.raises(InputError, match=r"was taught \d samples of shard .*, and the run reads \d"):
        open_with(tmp_path / "out", shards)


def test_another_augmentation_in_the_code(store: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipx.data.transforms.largest_divisor", lambda *args: 1)  # of no view here
    open_with(*store)
    monkeypatch.setattr("clipx.data.device_augment._PURPOSE", -2)
    with pytest.raises(InputError, match="augment pictures otherwise: views would be others than the teachers saw"):
        open_with(*store)


def test_folders_that_are_no_finished_store(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, shards = store
    for address, message in {
        "s3://bucket/out": "from a local disk; copy the folder there",
        str(tmp_path / "none"): "is not there; name the --out of a `clipx data teach`",
        str(tmp_path): "holds no teachers' embeddings",
    }.items():
        with pytest.raises(InputError, match=message):
            open_teachers(address)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(data_of(shards), [teacher("small")], str(tmp_path / "half"), on_progress=stop)
    with pytest.raises(InputError, match="is unfinished; run the same `clipx data teach` again, it goes on"):
        open_teachers(str(tmp_path / "half"))
    shutil.copytree(folder, tmp_path / "copy")
    description = tmp_path / "copy" / "teachers.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(InputError, match="has format 2, this version of clipx reads 1"):
        open_teachers(str(tmp_path / "copy"))
    description.write_text(json.dumps(content)[:-20])
    with pytest.raises(InputError, match=r"teachers\.json is damaged"):
        open_teachers(str(tmp_path / "copy"))


def test_a_store_that_was_copied_in_part(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, shards = store
    shutil.copytree(folder, tmp_path / "copy")
    first, second, third = (tmp_path / "copy" / "shards" / f"0000{number}.teachers" for number in range(3))
    open_with(tmp_path / "copy", shards)
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=r"00002\.teachers is damaged \([\d,]+ bytes, not [\d,]+\); copy the folder"
    ) as cut:
        open_with(tmp_path / "copy", shards)
    assert "\n" not in str(cut.value)
    for content, message in ((third.read_bytes()[:40], "too short"), (second.read_bytes(), "not of this store")):
        third.write_bytes(content)
        with pytest.raises(InputError, match=rf"00002\.teachers is damaged \({message}\); copy the folder again"):
            open_with(tmp_path / "copy", shards)
    open_with(tmp_path / "copy", shards[:2])
    first.unlink()
    with pytest.raises(InputError, match=r"00000\.teachers cannot be read: No such file .*; so are 1 more of 3 files;"):
        open_with(tmp_path / "copy", shards)


def test_a_teacher_that_is_not_there(store: tuple[Path, list[str]]) -> None:
    teachers = open_teachers(str(store[0]))
    assert (teachers.names, teachers.dims, teachers.views) == (("small",), {"small": 24}, 3)
    assert teachers.logit_scales["small"] == pytest.approx(16.6658, abs=1e-3)
    with pytest.raises(InputError, match=r"has no teacher 'large'; it has small"):
        teachers.column_reader(["large"])


def raw(path: str, key: str, *texts: str) -> RawSample:
    """A sample as its columns are read."""
    ref = SampleRef(source=0, shard=0, index=0, epoch=0, sample_id=0)
    return RawSample(members={}, texts=texts, ref=ref, name=lambda: SampleName(path, key, ()), view=0)


def test_what_can_only_be_seen_while_reading(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, shards = store
    reader = open_teachers(str(folder)).column_reader(["small"])
    assert len(reader.read(raw(shards[0], "000002", "picture 2", "another of 2"))) == 2
    with pytest.raises(RunError, match=r"sample 000999 of .*00000\.tar was not taught; the shard is another one now"):
        reader.read(raw(shards[0], "000999", "a"))
    with pytest.raises(RunError, match=r"a text of sample 000002 of .* was not taught: 'changed'"):
        reader.read(raw(shards[0], "000002", "changed"))
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "shards" / "00000.teachers"
    damaged = open_teachers(str(tmp_path / "copy")).column_reader(["small"])
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"00000\.teachers is damaged \([\d,]+ bytes, not [\d,]+\); restore"):
        damaged.read(raw(shards[0], "000002", "picture 2"))
    file.unlink()
    with pytest.raises(RunError, match=r"00000\.teachers cannot be read: No such file"):
        damaged.read(raw(shards[0], "000002", "picture 2"))


def test_teachers_that_nothing_asks(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, shards = store
    tiny = Path(__file__).parents[3] / "tiny.yaml"
    overrides = [f"run_dir={tmp_path}", f"data.train=[{','.join(shards)}]", f"data.teachers={folder}"]
    config = load_config([tiny], [*overrides, "global_batch_size=4"])
    config = replace(config, data=replace(config.data, augment=AUGMENT))
    indexes = [build_index(shards)]
    order, phase = build_order(config, indexes), phase_at(config, 0)
    with pytest.raises(
        InputError, match=r"data\.teachers=.* is used by nothing: name a loss that learns from teachers"
    ):
        phase_reader(config, indexes, order, phase=phase, wanted=Wanted())
    columns = open_teachers(str(folder)).column_reader(["small"])
    phase_reader(config, indexes, order, phase=phase, wanted=Wanted(columns=[columns]))


def test_equal_keys_in_a_shard_are_no_samples(tmp_path: Path) -> None:
    members = {0: sample(0), 1: sample(1), 2: sample(2)}
    shards = write_shards(tmp_path / "s", [3], replaced=members)
    content = Path(shards[0]).read_bytes().replace(b"000002.", b"000000.")
    Path(shards[0]).write_bytes(fixed_checksums(content))
    teachers = taught(data_of(shards), tmp_path / "out", teacher("small"))
    (shard,) = teachers.description.shards
    assert (shard.samples, shard.taught) == (3, 1)
    open_with(tmp_path / "out", shards)  # although its file holds fewer samples than its shard
    lines = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["000000"]
    assert lines[0]["reason"] == "another sample of the shard has this key"


def fixed_checksums(tar: bytes) -> bytes:
    """The tar with the checksums that its changed names need."""
    content = bytearray(tar)
    for at in range(0, len(content), 512):
        if content[at + 257 : at + 262] == b"ustar":
            content[at + 148 : at + 156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def test_the_reader_goes_to_other_processes(store: tuple[Path, list[str]]) -> None:
    import pickle

    folder, shards = store
    reader = open_teachers(str(folder)).column_reader(["small"])
    before = reader.read(raw(shards[0], "000002", "picture 2"))
    after = pickle.loads(pickle.dumps(reader)).read(raw(shards[0], "000002", "picture 2"))
    assert {name: value.tobytes() for name, value in before.items()} == {
        name: value.tobytes() for name, value in after.items()
    }
