import errno
import json
import os
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from servers import WebServer
from shard_files import pair, png, write_shards, write_tar

from clipx.data.inputs import InputOptions, Inputs, open_inputs
from clipx.data.rows.opening import SourceOptions
from clipx.data.rows.row import LeftOutError, TableColumns
from clipx.errors import InputError


def write_pictures(folder: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def keys(inputs: Inputs) -> list[str]:
    return [inputs.read(i).key for i in range(len(inputs))]


def test_pictures_and_patterns_keep_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["b.png", "a.png", "c.jpg"])
    inputs = open_inputs([str(tmp_path / "c.jpg"), str(tmp_path / "*.png")])
    assert [Path(key).name for key in keys(inputs)] == ["c.jpg", "a.png", "b.png"]
    item = inputs.read(2)
    assert item.image == png(0)
    assert item.captions == ()
    assert item.name == item.key == str(tmp_path / "b.png")


def test_a_folder_gives_pictures_with_captions_if_they_have_any(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["one.png", "sub/two.png", "three.png"])
    (tmp_path / "one.txt").write_text("a dog\n")
    (tmp_path / "three.txt").write_bytes(b"caf\xe9")  # no UTF-8: the picture is as good as without a caption
    inputs = open_inputs([str(tmp_path)])
    items = [inputs.read(i) for i in range(len(inputs))]
    assert [(item.key, item.captions) for item in items] == [
        ("one.png", ("a dog",)),
        ("three.png", ()),
        ("sub/two.png", ()),
    ]
    assert [item.image for item in items] == [png(0), png(2), png(1)]
    assert items[2].name == str(tmp_path / "sub/two.png")


def test_a_table_without_captions_and_one_with_them(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x.png", "y.png"])
    (tmp_path / "bare.csv").write_text("path,price\nx.png,3\nmissing.png,4\n")
    (tmp_path / "told.csv").write_text("path,caption\ny.png,a cat\nx.png,\n")
    inputs = open_inputs([str(tmp_path / "bare.csv"), str(tmp_path / "told.csv")])
    assert len(inputs) == 4
    assert inputs.read(0).record == {"path": "x.png", "price": 3}
    with pytest.raises(LeftOutError, match="missing file"):
        inputs.read(1)
    assert [inputs.read(i).captions for i in (2, 3)] == [("a cat",), ()]


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x.png"])
    (tmp_path / "bare.csv").write_text("path,price\nx.png,3\n")
    options = InputOptions(source=SourceOptions(columns=TableColumns(captions=["title"])))
    with pytest.raises(InputError, match="no column 'title'"):
        open_inputs([str(tmp_path / "bare.csv")], options)


def test_lists_of_images_may_lack_captions(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x.png", "y.png"])
    images = [{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "y.png"}]
    content = {"images": images, "annotations": [{"image_id": 2, "caption": "two"}]}
    (tmp_path / "captions_val.json").write_text(json.dumps(content))
    inputs = open_inputs([str(tmp_path / "captions_val.json")])
    assert [inputs.read(i).captions for i in range(2)] == [(), ("two",)]
    entries = [{"filename": "x.png", "split": "val", "sentences": []}]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    assert open_inputs([str(tmp_path / "dataset.json")]).read(0).captions == ()


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffa red bicycle, new\n\n  two dogs \n", encoding="utf-8")
    inputs = open_inputs([str(path)])
    assert len(inputs) == 3
    first = inputs.read(0)
    assert (first.image, first.captions, first.name) == (None, ("a red bicycle, new",), f"{path} line 1")
    assert inputs.read(2).captions == ("two dogs",)
    with pytest.raises(LeftOutError, match="blank"):
        inputs.read(1)


def test_samples_of_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [2, 1], replaced={1: {"png": png(1)}, 2: {"txt": b"only words"}})
    inputs = open_inputs([str(tmp_path)])
    assert keys(inputs) == ["000000", "000001", "000002"]
    first, second, third = (inputs.read(i) for i in range(3))
    assert (first.image, first.captions) == (png(0), ("picture 0",))
    assert (second.image, second.captions) == (png(1), ())
    assert (third.image, third.captions) == (None, ("only words",))
    assert first.name == f"{shards[0]} 000000"
    nothing = write_tar(tmp_path / "other.tar", [("000.json", b"{}")])
    with pytest.raises(LeftOutError, match="no picture"):
        open_inputs([str(nothing)]).read(0)


def test_a_set_of_shards_is_all_its_parts(tmp_path: Path) -> None:
    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        members = [(f"{part}{i}.{extension}", data) for i in numbers for extension, data in pair(i).items()]
        write_tar(tmp_path / "set" / part / "0.tar", members)
    (tmp_path / "set" / "classnames.txt").write_text("cat\n")
    (tmp_path / "set" / "other").mkdir()
    assert keys(open_inputs([str(tmp_path / "set")])) == ["test2", "train0", "train1"]
    write_pictures(tmp_path / "set", ["other/a.png"])  # a folder of pictures, as ever
    assert keys(open_inputs([str(tmp_path / "set")])) == ["other/a.png"]


def test_other_keys_of_shards(tmp_path: Path) -> None:
    sample = {"thumb.png": png(9), "png": png(1), "json": b'{"alt": ["one", "two"]}'}
    write_shards(tmp_path, [1], replaced={0: sample})
    inputs = open_inputs([str(tmp_path)], InputOptions(image_key="thumb.png", caption_key="json:alt"))
    assert inputs.read(0).image == png(9)
    assert inputs.read(0).captions == ("one", "two")


def test_pictures_of_a_web_server() -> None:
    with WebServer({"a.png": png(3)}) as server:
        address = f"{server.url}/a.png"
        inputs = open_inputs([address])
        assert inputs.read(0).image == png(3)
        assert inputs.read(0).key == address
        with pytest.raises(InputError, match="not there"):
            open_inputs([f"{server.url}/b.png"])
        inputs = open_inputs([address, f"{server.url}/b.png"])  # a host is asked once
        with pytest.raises(InputError, match=r"b\.png cannot be read"):
            inputs.read(1)


def test_pictures_of_an_object_store(tmp_path: Path) -> None:
    store = f"memory://{tmp_path.name}"  # which lasts as long as the process
    fsspec.filesystem("memory").pipe_file(f"{store}/a.png", png(3))
    item = open_inputs([f"{store}/a.png"]).read(0)
    assert (item.key, item.image) == (f"{store}/a.png", png(3))
    with pytest.raises(InputError, match=rf"{store}/b.png cannot be read \(not there"):
        open_inputs([f"{store}/b.png"])


@pytest.mark.parametrize("name", ["list.csv", "a.txt", "table.parquet?key=1"])
def test_lists_on_other_machines_are_not_taken_for_shards(name: str) -> None:
    with pytest.raises(InputError, match="of other machines only pictures and shards are read; copy it here first"):
        open_inputs([f"https://example.org/{name}"])


def test_the_identity_changes_with_the_files_and_nothing_else(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    [shard] = write_shards(tmp_path / "shards", [2])
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")
    places = [str(folder), str(folder / "a.png"), shard, str(lines)]

    def identities() -> list[str]:
        return [open_inputs([place]).identity() for place in places] + [open_inputs(places).identity()]

    before = identities()
    assert before == identities()
    assert len(set(before)) == 5
    assert open_inputs([shard]).identity() != open_inputs([shard], InputOptions(caption_key="json:alt")).identity()
    (folder / "a.png").write_bytes(png(70_000))
    os.utime(folder / "a.png", ns=(1, 1))
    members = [(f"{i:06d}.{name}", data) for i in (0, 1) for name, data in pair(i + 5).items()]
    write_tar(Path(shard), members)
    os.utime(shard, ns=(2, 2))
    lines.write_text("one\nthree\n")
    assert all(old != new for old, new in zip(before, identities(), strict=True))


def list_pictures(kind: str, folder: Path) -> Path:
    """A file of a kind that names x.png and y.png of its folder."""
    path = folder / f"list.{kind.partition('-')[0]}"
    names = ["x.png", "y.png"]
    match kind:
        case "csv":
            path.write_text("path,price\nx.png,3\ny.png,4\n")
        case "jsonl":
            path.write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
        case "parquet":
            arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            column = arrow.array(names).dictionary_encode()  # as pandas writes categories
            parquet.write_table(arrow.table({"path": column}), path)
        case "json-coco":
            images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
            path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 0, "caption": "a dog"}]}))
        case "json-karpathy":
            entries = [{"filename": name, "split": "val", "sentences": [{"raw": "a dog"}]} for name in names]
            path.write_text(json.dumps({"images": entries}))
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json-coco", "json-karpathy"])
def test_the_identity_changes_with_a_picture_that_a_list_names(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, ["x.png", "y.png"])
    path = list_pictures(kind, tmp_path)
    before = open_inputs([str(path)]).identity()
    assert open_inputs([str(path)]).identity() == before
    (tmp_path / "y.png").write_bytes(png(70_000))
    os.utime(tmp_path / "y.png", ns=(1, 1))
    changed = open_inputs([str(path)]).identity()
    (tmp_path / "y.png").unlink()
    assert len({before, changed, open_inputs([str(path)]).identity()}) == 3


def test_inputs_go_to_another_process(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [2])
    inputs = open_inputs([str(tmp_path / "shards"), str(write_pictures(tmp_path / "p", ["a.png"]))])
    inputs.read(0)  # which opens the shard
    copy = pickle.loads(pickle.dumps(inputs))
    assert [copy.read(i) for i in range(3)] == [inputs.read(i) for i in range(3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "no such file"),
        ("gone", "no such file"),
        ("gone.txt", "No such file"),
        ("what.pdf", "is none of"),
        ("*.webp", "no such file"),
    ],
)
def test_what_is_no_input_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "what.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=message) as error:
        open_inputs([str(tmp_path / name)])
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fifo_of_lines_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lines.txt")
    with pytest.raises(InputError, match=r"lines\.txt cannot be read \(it is a fifo, not a file\)"):
        open_inputs([str(tmp_path / "lines.txt")])


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_storage_that_fails_leaves_no_picture_out(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path, ["a.png"])
    inputs = open_inputs([str(folder)])

    def fail(path: Path) -> bytes:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(InputError, match=rf"a\.png cannot be read \({os.strerror(code)}\); "):
            inputs.read(0)
    assert inputs.read(0).image == png(0)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_is_gone_is_said_in_one_line(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, ["x.png", "y.png"])
    path = list_pictures(kind, tmp_path)
    inputs = open_inputs([str(path)])
    path.unlink()
    with pytest.raises(InputError, match=rf"list\.{kind} cannot be read \(.*; check the address"):
        inputs.read(0)


def test_no_input_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no input"):
        open_inputs([])
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(InputError, match="nothing in it"):
        open_inputs([str(empty)])


def test_threads_read_what_one_reads_and_shards_are_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": [png(i) for i in range(64)], "text": [f"picture {i}" for i in range(64)]}
    parquet.write_table(arrow.table(columns), tmp_path / "table.parquet", row_group_size=4)
    shards = write_shards(tmp_path / "s", [8, 8])
    inputs = open_inputs([str(tmp_path / "table.parquet"), *shards])
    assert inputs.shards() == shards
    rows = [number * 37 % 80 for number in range(80)]  # from one group of rows to another
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inputs.read, rows)) == [inputs.read(row) for row in rows]
