"""Every kind of set has the same pictures, classes and order; what is wrong with one is a line."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_sets import (
    KINDS,
    LABELS,
    WORDS,
    labelled_table,
    write_cifar,
    write_class_folders,
    write_csv,
    write_saved,
    write_saved_splits,
)
from PIL import Image
from shard_files import png

from clipx.data.labelled import (
    ClassificationSet,
    LabelledImage,
    MultiLabelSet,
    RetrievalSet,
    open_classes,
    open_classification,
    open_set,
)
from clipx.errors import InputError

PLAIN = ("a photo of a {c}.",)


def pairs(opened: ClassificationSet) -> list[tuple[bytes, int]]:
    return [(image.data, image.label) for image in opened.images()]


def pairs_of(labels: tuple[int, ...] = LABELS) -> list[tuple[bytes, int]]:
    return [(png(number), label) for number, label in enumerate(labels)]


def fault(path: Path | str, **options: str) -> str:
    with pytest.raises(InputError) as raised:
        list(open_set(str(path), **options).images())
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_pictures_and_classes(tmp_path: Path, kind: str) -> None:
    place = KINDS[kind](tmp_path / "pets")
    opened = open_classification(str(place))
    found = pairs(opened)
    assert (sorted(found) if "folders" in kind else found) == (sorted(pairs_of()) if "folders" in kind else pairs_of())
    assert (opened.class_names, opened.templates) == (WORDS, PLAIN)
    assert found == pairs(pickle.loads(pickle.dumps(opened)))
    whole = {"class folders": "pets (whole set)", "csv of words": "t.csv", "saved set": "pets (whole set)"}
    assert opened.name == (whole | {"csv of numbers": "t.csv"}).get(kind, "pets")
    (place if place.is_dir() else place.parent).joinpath("zeroshot_classification_templates.txt").write_text("{c}!\n")
    assert open_classification(str(place)).templates == ("{c}!",)


def test_class_folders_have_torchvision_s_numbers(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for word in ("b", "B", "a10", "a2", "_", "ä", "0"):
        for name in ("y.png", "deep/x.JPG", "deep/er/z.webp", "notes.md"):
            path = tmp_path / word / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(len(word)))
    theirs = ImageFolder(str(tmp_path))
    ours = open_classification(str(tmp_path))
    assert ours.class_names == tuple(theirs.classes)
    found = {(os.path.join(tmp_path, image.name), image.label) for image in ours.images()}
    assert found == set(theirs.samples)


def test_a_class_has_one_number_in_all_splits(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train")
    for name, word in (("a.png", "zebra"), ("b.png", "dog")):
        (tmp_path / "test" / word).mkdir(parents=True)
        (tmp_path / "test" / word / name).write_bytes(png(1))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train" / "empty").mkdir()
    test, train = open_classification(str(tmp_path)), open_classification(str(tmp_path), split="train")
    assert test.class_names == train.class_names == (*WORDS, "zebra")
    assert [image.label for image in test.images()] == [1, 3]
    assert sorted(pairs(train)) == sorted(pairs_of())


def test_the_part_for_validation_stands_in_for_the_test_part(tmp_path: Path) -> None:
    write_saved_splits(tmp_path / "saved", "train", "validation")
    opened = open_set(str(tmp_path / "saved"))
    assert (opened.name, opened.split) == ("saved (validation)", "validation")
    train = open_set(str(tmp_path / "saved"), split="train")
    assert (train.name, train.split) == ("saved (train)", "train")
    write_saved_splits(tmp_path / "one", "train")
    assert fault(tmp_path / "one").endswith("has no split 'test': it has train; name one of them")
    write_class_folders(tmp_path / "folders")
    assert "has no split 'train': it has no parts" in fault(tmp_path / "folders", split="train")
    write_class_folders(tmp_path / "kaggle" / "train")
    (tmp_path / "kaggle" / "test").mkdir()
    (tmp_path / "kaggle" / "test" / "1.png").write_bytes(png(1))
    assert "has no split 'test': it has train" in fault(tmp_path / "kaggle")


def test_cifar_is_read_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar(tmp_path / "sets", monkeypatch)
    for place in (tmp_path / "sets", tmp_path / "sets" / "cifar-10-batches-py"):
        opened = open_classification(str(place))
        images = list(pickle.loads(pickle.dumps(opened)).images())
        assert [image.label for image in images] == [2, 0, 1]
        decoded = np.stack([np.asarray(Image.open(io.BytesIO(image.data))) for image in images])
        assert (decoded == pixels.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)).all()
        assert opened.class_names == WORDS
    train = open_classification(str(tmp_path / "sets"), split="train")
    assert [image.label for image in train.images()] == [1, 2]
    assert "has no split 'val': it has train, test" in fault(tmp_path / "sets", split="val")
    identity = train.identity()
    with (tmp_path / "sets" / "cifar-10-batches-py" / "test_batch").open("ab") as file:
        file.write(b"more")
    assert "is not whole" in fault(tmp_path / "sets")
    (tmp_path / "sets" / "cifar-100-python").mkdir()
    assert "both CIFAR-10 and CIFAR-100" in fault(tmp_path / "sets")
    assert train.identity() != identity


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (['"[""dog"", ""cat""]"', "\"['dog']\"", '"[]"', "cat"], [(0, 1), (1,), (), (0,)]),
        (['"[1, 0]"', "[1]", '"[]"', "0"], [(0, 1), (1,), (), (0,)]),
        (["[old]", "cat", "[old]", "cat"], [0, 1, 0, 1]),  # a name with brackets
    ],
)
def test_lists_of_labels_in_cells_are_several_classes(tmp_path: Path, cells: list[str], found: list[object]) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells)))
    if "1" in cells[0]:
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    opened = open_classes(str(tmp_path / "t.csv"))
    labels = [image.label if isinstance(image, LabelledImage) else image.labels for image in opened.images()]
    assert labels == found
    assert set(opened.class_names) == ({"cat", "dog"} if labels[2] == () else {"[old]", "cat"})


def test_lists_of_labels_are_several_classes(tmp_path: Path) -> None:
    lists = [[1, 0, 1], [], [2]]
    write_saved(tmp_path / "saved", lists)
    opened = open_set(str(tmp_path / "saved"))
    assert isinstance(opened, MultiLabelSet)
    assert ([image.labels for image in opened.images()], opened.class_names) == ([(0, 1), (), (2,)], WORDS)
    with pytest.raises(InputError, match="is a multilabel set"):
        open_classification(str(tmp_path / "saved"))


def test_a_table_without_labels_is_for_retrieval_and_rows_of_a_picture_are_one(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ["one", "two", "three"])
    table.write_text("path,caption\n0.png,one\n1.png,two\n./0.png,three\n")
    opened = open_set(str(table))
    assert isinstance(opened, RetrievalSet)
    assert [(image.data, image.captions) for image in opened.images()] == [
        (png(0), ("one", "three")),
        (png(1), ("two",)),
    ]
    with pytest.raises(InputError, match="is a retrieval set"):
        open_classification(str(table))
    table.write_text("path,caption\n0.png,one\n1.png,\n")
    assert "1.png of" in fault(table)
    assert "has no caption" in fault(table)
    table.write_text("path,colour\n0.png,red\n")
    assert "has neither labels nor captions" in fault(table)


def test_labels_count_beside_captions(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ["a"])
    table.write_text("path,caption,label\n0.png,a cat,cat\n")
    assert open_classification(str(table)).class_names == ("cat",)


def test_what_is_wrong_with_a_set_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither pictures nor a table" in fault(tmp_path / "empty")
    assert "no such folder or file" in fault(tmp_path / "absent")
    assert "no row in it" in fault(write_csv(tmp_path / "a" / "t.csv", []))
    numbers = write_csv(tmp_path / "b" / "t.csv", [0, 1])
    assert "its labels are numbers (0, 1), whose names are not known; put classnames.txt" in fault(numbers)
    (numbers.parent / "classnames.txt").write_text("cat\n")
    assert "its label 1 is out of range; 1 classes are listed, 0 to 0" in fault(numbers)
    words = write_csv(tmp_path / "c" / "t.csv", ["cat", "mouse"])
    (words.parent / "classnames.txt").write_text("cat\ndog\n")
    assert "its label 'mouse' and the 2 listed classes (cat, dog) do not go together" in fault(words)
    (words.parent / "classnames.txt").write_text("cat\nmouse\ncat\n")
    assert "the class 'cat' is listed twice" in fault(words)
    (words.parent / "classnames.txt").write_text("")
    assert "classnames.txt is empty" in fault(words)
    absent = write_csv(tmp_path / "d" / "t.csv", ["cat", ""])
    assert "1.png of" in fault(absent)
    assert "has no label; give it one, or leave its row out" in fault(absent)
    (absent.parent / "0.png").unlink()
    assert "0.png: missing file" in fault(absent)
    assert "its label is a dict" in fault(write_nested(tmp_path / "e.parquet"))
    assert "labels of 2 kinds (a, b)" in fault(write_two_kinds(tmp_path / "f.parquet"))
    folders = write_class_folders(tmp_path / "g")
    (folders / "0.png").write_bytes(png(0))
    assert "0.png: no label (it lies in no folder of a class)" in fault(folders)


def write_nested(path: Path) -> Path:
    table = labelled_table([0]).drop_columns("label").append_column("label", [[{"a": 1}]])
    pq.write_table(table.replace_schema_metadata({}), path)
    return path


def write_two_kinds(path: Path) -> Path:
    table = labelled_table([0])
    table = table.append_column("b", [[0]]).rename_columns(["image", "a", "b"])
    features = {name: {"_type": "ClassLabel", "names": ["x"]} for name in ("a", "b")}
    content = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": content}), path)
    return path


def test_labels_that_are_not_known_are_none(tmp_path: Path) -> None:
    saved = write_saved(tmp_path / "saved", [0, -1])
    assert "has no label" in fault(saved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_changes_with_a_picture_and_a_class(tmp_path: Path, kind: str) -> None:
    place = KINDS[kind](tmp_path / "pets")
    before = open_set(str(place)).identity()
    assert open_set(str(place)).identity() == before
    root = place if place.is_dir() else place.parent
    (root / "zeroshot_classification_templates.txt").write_text("{c}!\n")
    assert open_set(str(place)).identity() == before
    (root / "classnames.txt").write_text("cat\ndog\nred fox\nzebra\n")
    named_otherwise = open_set(str(place)).identity()
    picture = next(path for path in sorted(tmp_path.rglob("*")) if path.suffix in (".png", ".arrow", ".parquet"))
    os.utime(picture, (1, 1))
    assert len({before, named_otherwise, open_set(str(place)).identity()}) == 3
