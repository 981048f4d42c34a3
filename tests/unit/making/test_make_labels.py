"""Labels become `cls` and a list of names, and what is made of a set is evaluated as the set itself."""

import json
from pathlib import Path

import pytest
from labelled_sets import KINDS, LABELS, WORDS, write_cifar, write_class_folders, write_csv, write_saved
from shard_files import png

from clipx.config.data import DataConfig, sources
from clipx.data.captions import CaptionReader
from clipx.data.labelled import MultiLabelSet, open_classification, open_set
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import TableColumns
from clipx.errors import InputError
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions
from clipx.storage.files import open_ranges
from clipx.storage.tar import read_members, scan_tar


def make(source: Path, out: Path, *, splits: tuple[str, ...] = (), **columns: object) -> Made:
    options = SourceOptions(columns=TableColumns(**columns), splits=splits)
    return make_shards(open_rows([str(source)], options), str(out), MakeOptions(), workers=1, max_bad=1.0)


def members(out: Path) -> list[dict[str, bytes]]:
    file = open_ranges(str(out / "00000.tar"))
    scan = scan_tar(file)
    return [read_members(file, scan.members(number)) for number in range(len(scan.keys))]


def left_out(out: Path) -> list[tuple[object, object]]:
    lines = (out / "left_out.jsonl").read_text().splitlines()
    return [(json.loads(line)["reason"], json.loads(line)["detail"]) for line in lines]


SPLIT = {
    "class folders of splits": ("test",),
    "saved splits": ("test",),
    "csv for each split": (),
    "jsonl for each split": (),
}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"csv for each split", "jsonl for each split"}))
def test_what_is_made_of_a_set_is_that_set(tmp_path: Path, kind: str) -> None:
    source = KINDS[kind](tmp_path / "pets")
    made = make(source, tmp_path / "out", splits=SPLIT.get(kind, ()))
    assert (made.num_samples, made.num_classes, made.left_out) == (7, 3, {})
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog\nred fox\n"
    assert all("txt" not in fields for fields in members(tmp_path / "out"))
    theirs, ours = open_classification(str(source)), open_classification(str(tmp_path / "out"))
    assert ours.class_names == theirs.class_names
    assert [(image.data, image.label) for image in ours.images()] == [
        (image.data, image.label) for image in theirs.images()
    ]


def test_a_run_trains_on_the_names(tmp_path: Path) -> None:
    make(KINDS["csv of words"](tmp_path / "pets"), tmp_path / "out")
    names = str(tmp_path / "out" / "classnames.txt")
    data = DataConfig(train=["x"], caption_key="cls", class_names=names, templates=["a photo of a {c}"])
    reader = CaptionReader(sources(data)[0], captions_per_image=1, seed=0)
    texts = [reader.read(fields, epoch=0, sample_id=0).texts[0] for fields in members(tmp_path / "out")]
    assert texts == [f"a photo of a {WORDS[label]}" for label in LABELS]


def test_captions_stay_beside_labels_and_rows_with_neither_are_left_out(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "in" / "t.csv", range(4))
    table.write_text("path,caption,kind\n0.png,one,cat\n1.png,two,\n2.png,,dog\n3.png,,\n")
    made = make(table, tmp_path / "out", label="kind")
    assert made.left_out == {"no label": 1}
    found = [{name: fields[name] for name in ("txt", "cls") if name in fields} for fields in members(tmp_path / "out")]
    assert found == [{"txt": b"one", "cls": b"0"}, {"txt": b"two"}, {"cls": b"1"}]
    made = make(table, tmp_path / "plain")  # the column is not asked for
    assert (made.num_classes, made.left_out) == (0, {"no caption": 2})
    assert not (tmp_path / "plain" / "classnames.txt").exists()
    assert all("cls" not in fields for fields in members(tmp_path / "plain"))


def test_rows_of_one_picture_must_be_of_one_class(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "in" / "t.csv", range(2))
    table.write_text("path,label\n0.png,cat\n0.png,dog\n1.png,dog\n1.png,dog\n")
    made = make(table, tmp_path / "out")
    assert (made.num_samples, made.num_joined, made.left_out) == (1, 1, {"no label": 2})
    assert left_out(tmp_path / "out")[0] == ("no label", "the rows of this picture are of several classes: cat, dog")


def test_lists_of_labels_make_a_multi_label_set(tmp_path: Path) -> None:
    write_saved(tmp_path / "pets", [[1, 0], [], [2]])
    make(tmp_path / "pets", tmp_path / "out")
    opened = open_set(str(tmp_path / "out"))
    assert isinstance(opened, MultiLabelSet)
    assert [image.labels for image in opened.images()] == [(0, 1), (), (2,)]


def test_cifar_becomes_shards_of_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "sets", monkeypatch)
    made = make(tmp_path / "sets", tmp_path / "out", splits=("test",))
    assert (made.num_samples, made.extensions) == (3, {"png": 3})
    assert [image.label for image in open_classification(str(tmp_path / "out")).images()] == [2, 0, 1]
    with pytest.raises(InputError, match=r"several splits \(train, test\)"):
        make(tmp_path / "sets", tmp_path / "all")


@pytest.mark.parametrize("kind", ["class folders", "csv of numbers"])
def test_a_list_of_names_is_a_part_of_what_was_asked_for(tmp_path: Path, kind: str) -> None:
    source = KINDS[kind](tmp_path / "pets")
    make(source, tmp_path / "out")
    root = source if source.is_dir() else source.parent
    (root / "classnames.txt").write_text("Cat\nDog\nRed fox\n")
    with pytest.raises(InputError, match="the source is another or has changed"):
        make(source, tmp_path / "out")
    make(source, tmp_path / "other")
    assert (tmp_path / "other" / "classnames.txt").read_text() == "Cat\nDog\nRed fox\n"


@pytest.mark.parametrize("name", ["", " cat", "two\u2028lines", "\u200b", "half \udcff"])
def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_saved(tmp_path / "pets", names=["dog", name, "emu"])
    with pytest.raises(InputError, match=r"the name of class 1, .*, is not one line of text"):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_lies_in_no_class_is_left_out(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pets")
    (tmp_path / "pets" / "9.png").write_bytes(png(9))
    options = SourceOptions(class_folders=True)
    rows = open_rows([str(tmp_path / "pets")], options)
    made = make_shards(rows, str(tmp_path / "out"), MakeOptions(), workers=1)
    assert (made.num_samples, made.left_out) == (7, {"no label": 1})
