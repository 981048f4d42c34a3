"""Every picture-like file of a folder is a sample or a line in left_out.jsonl, with the caption that lies beside it."""

import json
import os
import socket
from pathlib import Path

import pytest
from shard_files import png

from clipx.data.rows.folders import FolderRows
from clipx.data.rows.row import LeftOutError, Row, TableColumns
from clipx.errors import InputError
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions


def rows_of(folder: Path) -> FolderRows:
    return FolderRows(folder, columns=TableColumns())


def captions(folder: Path) -> dict[str, str]:
    """The only caption of each image, or the reason why it is left out."""
    rows = rows_of(folder)
    found = {}
    for number in range(len(rows)):
        try:
            row = rows.read(number)
        except LeftOutError as error:
            found[error.name] = error.reason
        else:
            (found[row.name],) = row.captions
    assert len(found) == len(rows)
    return found


def pair(folder: Path, name: str, caption: str = "a", *, text: str | None = None) -> None:
    """A picture with its caption in `text`, else in NAME.txt."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(1))
    (folder / (text or f"{path.relative_to(folder).with_suffix('.txt')}")).write_text(caption)


def make(folder: Path, out: Path, **options: float) -> tuple[Made, list[dict[str, object]]]:
    made = make_shards(rows_of(folder), str(out), MakeOptions(), workers=1, **options)
    return made, [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def test_extensions_of_any_kind_and_case(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.JPE", "c.pgm", "d.Dib", "e.pjpeg", "f.MPO", "g.jif", "h.apng"):
        pair(tmp_path, name, name)
    pair(tmp_path, "IMG.JPG", "in capitals", text="IMG.TXT")
    pair(tmp_path, "x.png", '{"caption": "of json"}', text="x.Json")
    pair(tmp_path, "y.png", "the usual name", text="y.txt")
    (tmp_path / "y.TXT").write_text("the other")
    found = captions(tmp_path)
    assert {name: text for name, text in found.items() if name[0] in "abcdefgh"} == {
        name: name for name in found if name[0] in "abcdefgh"
    }
    assert len(found) == 11
    assert (found["IMG.JPG"], found["x.png"], found["y.png"]) == ("in capitals", "of json", "the usual name")


def test_pictures_of_one_name_are_two_samples(tmp_path: Path) -> None:
    pair(tmp_path, "a.jpg", "both")
    (tmp_path / "a.png").write_bytes(png(2))
    assert captions(tmp_path) == {"a.jpg": "both", "a.png": "both"}
    assert make(tmp_path, tmp_path.with_name(f"{tmp_path.name}-out"))[0].num_samples == 2


def test_kinds_that_are_not_decoded_are_listed(tmp_path: Path) -> None:
    pair(tmp_path, "a.png")
    for name in ("b.heic", "c.CR2", "d.svg"):
        pair(tmp_path, name)
    (tmp_path / "e.txt.bak").touch()
    made, listed = make(tmp_path, tmp_path.with_name(f"{tmp_path.name}-out"))
    assert (made.num_samples, made.left_out, made.num_rows) == (1, {"unreadable picture": 3}, 4)
    assert [(line["name"], line["detail"]) for line in listed] == [
        ("b.heic", "pictures of the kind .heic are not decoded"),
        ("c.CR2", "pictures of the kind .cr2 are not decoded"),
        ("d.svg", "pictures of the kind .svg are not decoded"),
    ]


def test_hidden_files_are_listed_and_do_not_count_as_bad(tmp_path: Path) -> None:
    folder = tmp_path / ".data"  # what a person names is not hidden
    hidden = [
        "._000.png",
        ".ipynb_checkpoints/x-checkpoint.png",
        "__MACOSX/a/._0.jpg",
        "@eaDir/0.png/THUMB.jpg",
        "a/.b/c.png",
        "lost+found/0.png",
    ]
    for number in range(100):
        pair(folder, f"{number:03}.png")
    for name in hidden:
        pair(folder, name)
    (folder / ".DS_Store").touch()
    made, listed = make(folder, tmp_path / "out", max_bad=0.0)
    assert (made.num_samples, made.left_out, made.num_rows) == (100, {"hidden file": 6}, 106)
    assert {(line["row"], line["name"]) for line in listed} == {(None, name) for name in hidden}


def test_each_real_folder_is_visited_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    pair(folder, "0.png", "top")
    pair(folder, "z/1.png", "deep")
    pair(tmp_path / "elsewhere", "2.png", "elsewhere")
    (folder / "self").symlink_to(folder)
    (folder / "z" / "up").symlink_to("..")
    (folder / "a").symlink_to("z")  # before z by its name, but z is the folder itself
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    pair(folder, ".real/3.png", "by a link")  # as Kubernetes mounts a volume
    (folder / "shown").symlink_to(".real")
    (folder / "4.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "4.txt").write_text("a link to nothing")
    assert captions(folder) == {
        "0.png": "top",
        "4.png": "a link to nothing",
        "z/1.png": "deep",
        "b/2.png": "elsewhere",
        "shown/3.png": "by a link",
    }
    made, _ = make(folder, tmp_path / "out")
    assert (made.num_samples, made.left_out) == (4, {"missing file": 1})


def test_spaces_behind_a_name_hide_no_picture(tmp_path: Path) -> None:
    pair(tmp_path, "0.png", "zero")
    (tmp_path / "1.png ").write_bytes(png(1))
    (tmp_path / "1.txt").write_text("one")
    assert captions(tmp_path) == {"0.png": "zero", "1.png ": "one"}


def test_folders_too_deep_to_be_walked_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match="one within the other"):
        captions(tmp_path)


def test_pipes_sockets_and_devices_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path, "good.png", "good")
    for name in ("a.jpg", "b.txt", "c.json"):
        os.mkfifo(tmp_path / name)
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "a.txt").write_text("of a pipe")
    (tmp_path / "d.png").symlink_to("/dev/zero")
    (tmp_path / "d.txt").write_text("endless")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        listener.bind("e.png")
    pair(tmp_path, "e.jpg")
    made, listed = make(tmp_path, tmp_path.with_name(f"{tmp_path.name}-out"))
    assert (made.num_samples, made.num_rows) == (2, 7)
    assert {line["name"]: (line["reason"], str(line["detail"]).rpartition("/")[2]) for line in listed} == {
        "a.jpg": ("unreadable picture", "a.jpg is no regular file"),
        "b.png": ("no caption", "b.txt is no regular file"),
        "c.png": ("no caption", "c.json is no regular file"),
        "d.png": ("unreadable picture", "d.png is no regular file"),
        "e.png": ("unreadable picture", "e.png is no regular file"),
    }


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"\xef\xbb\xbfa dog\r\n", "a dog"),
        ("\ufeffein Vögelchen".encode("utf-16-le"), "ein Vögelchen"),
        ("\ufeffein Vögelchen".encode("utf-16-be"), "ein Vögelchen"),
        ("\ufeff犬".encode("utf-32-le"), "犬"),
        (b"\xef\xbb\xbf", "no caption"),
        (b"\xff\xfe", "no caption"),
        (b"&nbsp; &#8203;", "no caption"),
        ("\u200b\u2060".encode(), "no caption"),
        (b"\0\0", "no caption"),
        ("a dog".encode("utf-16-le"), "no caption"),  # without a mark it would be read as a, NUL, d, ...
        (b"caf\xe9", "no caption"),
        (b"", "no caption"),
    ],
)
def test_marks_are_no_text_and_nothing_is_no_caption(tmp_path: Path, content: bytes, caption: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_bytes(content)
    assert captions(tmp_path) == {"a.png": caption}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.json").write_bytes('{"caption": "ein Vögelchen"}'.encode(encoding))
    assert captions(tmp_path) == {"a.png": "ein Vögelchen"}


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path, "0.png")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: str):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"closed cannot be read: Permission denied; mend that"):
        rows_of(tmp_path)


def test_rows_are_found_by_their_names(tmp_path: Path) -> None:
    pair(tmp_path, "d[1]/a{2}.png", "literal")
    row = rows_of(tmp_path).read(0)
    assert row == Row("d[1]/a{2}.png", tmp_path / "d[1]" / "a{2}.png", ["literal"], {"file_name": "d[1]/a{2}.png"})
