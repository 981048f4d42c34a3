"""The forms of --classes and --templates, and what is wrong with them in one line."""

import os
import re
from pathlib import Path

import pytest
from tiny_clip import encoded, picture, write_classification_set, write_retrieval_set

from clipx.errors import InputError
from clipx.use.class_list import read_classes, read_templates

A_PHOTO = ("a photo of a {c}.",)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("cat,dog", ("cat", "dog")),
        (" cat , red house ", ("cat", "red house")),
        ('"Paris, France", Rome', ("Paris, France", "Rome")),
        ('"the ""big"" one",other', ('the "big" one', "other")),
        ("his/her,AC/DC", ("his/her", "AC/DC")),
        ("v1.txt,b", ("v1.txt", "b")),
        ("猫,犬", ("猫", "犬")),
    ],
)
def test_names_stand_between_commas(value: str, names: tuple[str, ...]) -> None:
    found = read_classes(value)
    assert (found.names, found.templates, found.is_set) == (names, A_PHOTO, False)


def test_a_file_has_a_name_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("\ufeffcat, black\n  dog \r\n\n", encoding="utf-8")
    found = read_classes(str(path), ["{c}!"])
    assert (found.names, found.templates, found.origin) == (("cat, black", "dog"), ("{c}!",), str(path))


def test_a_set_has_names_and_prompts(tmp_path: Path) -> None:
    folder = write_classification_set(tmp_path / "set", [0, 1], class_names=["cat", "dog", "cat"], templates=["my {c}"])
    found = read_classes(str(folder))
    assert (found.names, found.templates, found.is_set) == (("cat", "dog", "cat"), ("my {c}",), True)
    assert read_classes(str(folder), ["{c}!"]).templates == ("{c}!",)


def test_folders_and_tables_of_labelled_pictures_are_sets(tmp_path: Path) -> None:
    for name in ("red dog", "cat"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "a.png").write_bytes(encoded(picture(0)))
    (tmp_path / "table.csv").write_text("path,label\nfolders/cat/a.png,feline\nfolders/red dog/a.png,canine\n")
    found = read_classes(str(tmp_path / "folders"))
    assert (sorted(found.names), found.templates, found.is_set) == (["cat", "red dog"], A_PHOTO, True)
    assert sorted(read_classes(str(tmp_path / "table.csv")).names) == ["canine", "feline"]


def test_the_pictures_of_a_set_need_not_be_there(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\n\ndog\n")
    assert read_classes(str(tmp_path)).names == ("cat", "dog")
    assert read_classes(str(tmp_path)).templates == A_PHOTO


def test_templates_are_texts_and_files(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {c}\n\nthe {c}\n")
    assert read_templates(["my {c}", str(path)]) == ("my {c}", "a {c}", "the {c}")
    assert read_templates([]) == ()


def test_one_class_alone_needs_multi(tmp_path: Path) -> None:
    assert read_classes("cat", multi=True).names == ("cat",)
    with pytest.raises(InputError, match="--classes: 'cat' alone would have every picture; name another, or ask for"):
        read_classes("cat")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "--classes: no class is named; name at least one"),
        ("  ", "--classes: no class is named"),
        ("cat,,dog", "--classes: entry 2 is blank; each class needs a name"),
        ("cat,dog,", "--classes: entry 3 is blank"),
        ("cat,dog,Cat", "--classes: 'Cat' stands twice, as entries 1 and 3; name it once"),
        ("cat\ndog\n", "has several lines; put commas between the names, or name their file"),
        ('"cat,dog', "put a name that has a comma in double quotes"),
        ("absent.txt", "--classes absent.txt: no such file or folder; give one, or names with commas"),
        ("a/b", "--classes a/b: no such file or folder"),
        ("{tmp}/fifo.txt", "fifo.txt: neither a file nor a folder; give one"),
        ("{tmp}/empty.txt", "empty.txt is empty; --classes needs it"),
        ("{tmp}/gap.txt", "gap.txt: entry 2 is blank"),
        ("{tmp}/twice.txt", "twice.txt: 'dog' stands twice, as entries 1 and 2"),
        ("{tmp}/latin.txt", "latin.txt is not UTF-8 text; --classes needs it"),
        ("{tmp}/retrieval", "has no classnames.txt, and is no set that has classes: "),
        ("{tmp}/nothing", "has no classnames.txt, and is no set that has classes: "),
    ],
)
def test_what_has_no_classes_is_bad_input(tmp_path: Path, value: str, message: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "twice.txt").write_text("dog\ndog\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\ncat\n")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    write_retrieval_set(tmp_path / "retrieval", [["a"], ["b"]])
    with pytest.raises(InputError, match=re.escape(message)):
        read_classes(value.replace("{tmp}", str(tmp_path)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a photo of a {}", "--templates 'a photo of a {}' is no file, and lacks {c}, the place of the class"),
        ("{tmp}/t.txt", "t.txt: 'b' lacks {c}"),
        ("{tmp}/empty.txt", "empty.txt is empty; --templates needs it"),
    ],
)
def test_what_is_no_template_is_bad_input(tmp_path: Path, value: str, message: str) -> None:
    (tmp_path / "t.txt").write_text("a {c}\nb\n")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=re.escape(message)):
        read_classes("cat,dog", [value.replace("{tmp}", str(tmp_path))])
