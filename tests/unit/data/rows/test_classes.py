"""Which number a label has: its place in a list of names, its own value, or its place by name."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from labelled_sets import WORDS, write_class_folders
from shard_files import png

from clipx.data.rows.classes import find_classes
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import Row, Rows, TableColumns
from clipx.errors import InputError


class Labels(Rows):
    """Rows of which only the labels are asked for."""

    def __init__(self, labels: Sequence[object], *, names: Sequence[str] = (), words: Sequence[str] = ()) -> None:
        self._labels, self._names, self._words = labels, names, words

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, row: int) -> Row:
        raise NotImplementedError

    def identity(self) -> list[object]:
        return []

    def labels(self):
        return iter(self._labels)

    def class_names(self) -> Sequence[str]:
        return self._names

    def label_words(self) -> Sequence[str]:
        return self._words


def numbers(labels: Sequence[object], *, names: str = "", words: str = "") -> list[object]:
    rows = Labels(labels, names=names.split(), words=words.split())
    classes = find_classes(rows, origin="set")
    return [classes.numbers(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [
        (["b", "a", " b ", None, ""], "", [(1,), (0,), (1,), None, None]),
        ([2, 0, -1, 1.0, float("nan")], "x y z", [(2,), (0,), None, (1,), None]),
        (["2", "0"], "x y z", [(2,), (0,)]),
        (["z", "x"], "x y z", [(2,), (0,)]),
        ([1, 2], "1 2", [(0,), (1,)]),  # names that are numbers are names first: classes counted from 1
        ([7, 3], "7 3 7.5", [(0,), (1,)]),
        ([[2, 0, 2], [], None, "1"], "x y z", [(0, 2), (), None, (1,)]),
        ([True, False], "False True", [(1,), (0,)]),
    ],
)
def test_numbers_of_labels(labels: list[object], names: str, found: list[object]) -> None:
    assert numbers(labels, names=names) == found


@pytest.mark.parametrize(
    ("words", "names", "found"),
    [
        ("cat dog", "", [0, 1]),
        ("cat dog", "dog cat", [1, 0]),  # by name where all are listed
        ("n01 n02", "tench goldfish", [0, 1]),  # by place where none is
        ("cat n02", "cat goldfish", [0, 1]),
        ("0 1 10 2 3 4 5 6 7 8 9", "a b c d e f g h i j k", [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("01 02", "a b", [0, 1]),
    ],
)
def test_numbers_of_folders(words: str, names: str, found: list[int]) -> None:
    assert numbers(words.split(), names=names, words=words) == [(number,) for number in found]


@pytest.mark.parametrize(
    ("words", "names", "message"),
    [
        ("1 10 2", "a b c", "folders are numbers that do not count by name"),
        ("cat n02", "goldfish cat", "'cat' is class 1 of classnames.txt but folder 0 by name"),
        ("cat dog", "a b c", r"its 2 class folders and the 3 listed classes \(a, b, c\) do not go together"),
    ],
)
def test_folders_whose_names_nobody_can_tell(words: str, names: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        numbers(words.split(), names=names, words=words)


def test_a_source_without_any_label_is_none_or_empty() -> None:
    with pytest.raises(InputError, match="set: no row has a label"):
        numbers([None, -1])


def columns_of(names: Sequence[str], *, typed: Sequence[str] = (), **given: object) -> tuple[object, object]:
    found = TableColumns(**given).resolve(names, "t", typed=typed)
    return list(found.captions), found.label


def test_which_column_holds_labels() -> None:
    assert columns_of(["path", "label"]) == ([], "label")
    assert columns_of(["path", "Class"]) == ([], "Class")
    assert columns_of(["path", "caption", "label"]) == (["caption"], None)  # as before there were labels
    assert columns_of(["path", "caption", "label"], finds_label=True) == (["caption"], "label")
    assert columns_of(["path", "caption", "kind"], label="kind") == (["caption"], "kind")
    assert columns_of(["path", "kind"], label="kind") == ([], "kind")
    assert columns_of(["path", "caption", "x"], typed=["x"]) == (["caption"], "x")
    assert columns_of(["img", "fine_label", "coarse_label"], typed=["coarse_label", "fine_label"]) == ([], "fine_label")
    with pytest.raises(InputError, match=r"labels of 2 kinds \(x, y\); name one with --label-column"):
        columns_of(["path", "x", "y"], typed=["x", "y"])
    with pytest.raises(InputError, match="has no column 'kind'; name one of path, caption with --label-column"):
        columns_of(["path", "caption"], label="kind")
    with pytest.raises(InputError, match="has no caption column of a usual name"):
        columns_of(["path", "colour"])
    with pytest.raises(InputError, match="2 columns 'label'"):
        columns_of(["path", "label", "label"])


def test_folders_are_classes_only_if_no_picture_has_a_caption(tmp_path: Path) -> None:
    def labels(**options: object) -> list[object] | None:
        found = open_rows([str(tmp_path)], SourceOptions(**options)).labels()
        return None if found is None else sorted({str(label) for label in found})

    write_class_folders(tmp_path)
    assert labels() == sorted(WORDS)
    assert labels(class_folders=False) is None
    assert labels(columns=TableColumns(needs_captions=False)) is None
    (tmp_path / "cat" / "1.txt").write_text("a cat")
    assert labels() is None
    assert labels(class_folders=True) == sorted(WORDS)
    (tmp_path / "cat" / "1.txt").unlink()
    (tmp_path / "0.png").write_bytes(png(0))
    assert labels() is None
    with pytest.raises(InputError, match="holds no folder with pictures; a class is a folder of it"):
        open_rows([str(tmp_path / "dog")], SourceOptions(class_folders=True))


def test_folders_beside_a_picture_are_no_classes_but_may_be_meant_so(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/y.png", "stray.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    rows = open_rows([str(tmp_path)], SourceOptions())
    assert rows.labels() is None
    assert rows.notes() == [f"{tmp_path}: no picture has a caption; if its folders are classes, add --class-folders"]
    (tmp_path / "stray.txt").write_text("a caption")
    assert open_rows([str(tmp_path)], SourceOptions()).notes() == ()


def test_one_folder_is_no_class_and_several_splits_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(png(0))
    assert open_rows([str(tmp_path)], SourceOptions()).labels() is None
    for split in ("train", "test"):
        write_class_folders(tmp_path / "set" / split)
    with pytest.raises(InputError, match=r"several splits \(test, train\); name those to take with --split"):
        open_rows([str(tmp_path / "set")], SourceOptions())
    rows = open_rows([str(tmp_path / "set")], SourceOptions(splits=["train", "test"]))
    assert len(rows) == 14
    assert list(rows.label_words()) == list(WORDS)
    with pytest.raises(InputError, match="has no split 'val'; it has test, train"):
        open_rows([str(tmp_path / "set")], SourceOptions(splits=["val"]))


def test_sources_with_different_lists_are_not_one(tmp_path: Path) -> None:
    for name, listed in (("a", "cat\ndog\nred fox"), ("b", "dog\ncat\nred fox")):
        write_class_folders(tmp_path / name)
        (tmp_path / name / "classnames.txt").write_text(listed)
    rows = open_rows([str(tmp_path / "a"), str(tmp_path / "b")], SourceOptions())
    with pytest.raises(InputError, match=r"list different classes \(cat, dog, red fox; dog, cat, red fox\)"):
        find_classes(rows, origin="set")
