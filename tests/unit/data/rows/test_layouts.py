"""What img2dataset, the hub and HF datasets leave in a folder is found; what is there by its name is meant by it."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png, write_shards

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import LeftOutError, Row, Rows, TableColumns
from clipx.errors import InputError


def captions(rows: Rows) -> list[str]:
    found = [rows.read(number) for number in range(len(rows))]
    return [caption for row in found if isinstance(row, Row) for caption in row.captions]


def opened(source: Path | str, *splits: str) -> list[str]:
    return captions(open_rows([str(source)], SourceOptions(splits=splits)))


def write_parquet(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(number), "path": None} for number in range(len(texts))]
    pq.write_table(pa.table({"image": images, "text": list(texts)}), path)


def write_csv(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "0.png").write_bytes(png(0))
    path.write_text("file_name,text\n" + "".join(f"0.png,{text}\n" for text in texts))


@pytest.mark.parametrize("place", ["", "data"])
def test_img2dataset_s_files(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    for shard in ("00000", "00001"):
        (folder / shard).mkdir(parents=True)
        (folder / shard / f"{shard}0000.jpg").write_bytes(png(1))
        (folder / shard / f"{shard}0000.txt").write_text(f"of {shard}")
        (folder / shard / f"{shard}0000.json").write_text('{"caption": "of json", "status": "success"}')
        pq.write_table(pa.table({"url": ["https://x.org"], "caption": ["of the table"]}), folder / f"{shard}.parquet")
        (folder / f"{shard}_stats.json").write_text("{}")
    assert opened(tmp_path) == ["of 00000", "of 00001"]


@pytest.mark.parametrize("place", ["", "data"])
def test_the_hub_s_parquet(tmp_path: Path, place: str) -> None:
    for number, text in enumerate(("a", "b")):
        write_parquet(tmp_path / place / f"train-{number:05}-of-00002.parquet", text)
    (tmp_path / "README.md").touch()
    assert opened(tmp_path) == ["a", "b"]
    write_parquet(tmp_path / place / "test-00000-of-00001-abc.parquet", "c")
    with pytest.raises(
        InputError, match=r"several splits \(test, train\); name those to take with --split, or their files"
    ):
        opened(tmp_path)
    assert opened(tmp_path, "train") == ["a", "b"]
    assert opened(tmp_path, "train", "test") == ["a", "b", "c"]
    with pytest.raises(InputError, match="has no split 'val'; it has test, train"):
        opened(tmp_path, "val")
    assert opened(tmp_path / place / "test*.parquet") == ["c"]


def test_a_folder_of_parquet_for_each_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "0000.parquet", "a")
    write_parquet(tmp_path / "train" / "0001.parquet", "b")
    assert opened(tmp_path) == ["a", "b"]
    write_parquet(tmp_path / "test" / "0000.parquet", "c")
    assert opened(tmp_path, "test") == ["c"]
    with pytest.raises(InputError, match=r"several splits \(test, train\)"):
        opened(tmp_path)


def test_parquet_files_of_one_split(tmp_path: Path) -> None:
    for name, text in (("part-1.parquet", "a"), ("part-2.parquet", "b"), (".part-3.parquet", "hidden")):
        write_parquet(tmp_path / name, text)
    assert opened(tmp_path) == ["a", "b"]
    write_parquet(tmp_path / "test.parquet", "c")
    with pytest.raises(InputError, match=r"several splits \(files without one, test\)"):
        opened(tmp_path)
    with pytest.raises(InputError, match="has no split 'train'; it has test"):
        opened(tmp_path, "train")


def test_pictures_beside_a_folder_named_data_are_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a picture")
    write_parquet(tmp_path / "data" / "x.parquet", "of a table")
    assert opened(tmp_path) == ["a picture"]


def test_metadata_of_splits(tmp_path: Path) -> None:
    write_csv(tmp_path / "train" / "metadata.csv", "a")
    assert opened(tmp_path) == ["a"]
    write_csv(tmp_path / "test" / "metadata.csv", "b")
    with pytest.raises(InputError, match=r"several splits \(test, train\)"):
        opened(tmp_path)
    assert opened(tmp_path, "test") == ["b"]


def test_pictures_that_the_metadata_do_not_name_are_listed(tmp_path: Path) -> None:
    write_csv(tmp_path / "metadata.csv", "a", "b")
    for name in ("1.png", "deep/2.JPG", "._0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    rows = open_rows([str(tmp_path)], SourceOptions())
    assert captions(rows) == ["a", "b"]
    assert {(file.name, file.reason) for file in rows.passed_over()} == {
        ("1.png", "not in the table"),
        ("deep/2.JPG", "not in the table"),
        ("._0.png", "hidden file"),
    }


def test_pictures_beside_a_folder_with_metadata_are_not_forgotten(tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "metadata.csv", "of the table")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(png(1))
    (tmp_path / "b" / "1.txt").write_text("of the text")
    rows = open_rows([str(tmp_path)], SourceOptions())
    with pytest.raises(LeftOutError, match="no caption"):
        rows.read(0)
    assert rows.read(1).captions == ["of the text"]


@pytest.mark.parametrize("name", ["t.csv", "in", "t.parquet", "captions.json", "shards"])
def test_a_split_where_there_is_none(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "t.csv", "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    write_parquet(tmp_path / "t.parquet", "a")
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    write_shards(tmp_path / "shards", [1])
    with pytest.raises(InputError, match="has no split"):
        opened(tmp_path / name, "train")


def test_karpathy_s_splits(tmp_path: Path) -> None:
    images = [
        {"filename": "0.png", "split": split, "sentences": [{"raw": split}]} for split in ("train", "test", "train")
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    rows = open_rows([str(path)], SourceOptions())
    assert captions(rows) == ["train", "test", "train"]
    assert rows.notes() == [f"{path}: all of its splits (train 2, test 1; json:split); --split takes one"]
    rows = open_rows([str(path)], SourceOptions(splits=["test"]))
    assert (captions(rows), rows.notes()) == (["test"], ())
    with pytest.raises(InputError, match="has no split 'val'; its splits are train, test"):
        opened(path, "val")


def test_what_exists_is_meant_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("d[12]/t[1].csv", "d1/t[1].csv", "d1/t1.csv", "d{a,b}/t.csv", "d*/t.csv"):
        write_csv(tmp_path / name, name.replace(",", ";"))
    assert opened(tmp_path / "d[12]" / "t[1].csv") == ["d[12]/t[1].csv"]
    assert opened(tmp_path / "d[12]" / "*.csv") == ["d[12]/t[1].csv"]
    assert opened(tmp_path / "d{a,b}" / "*.csv") == ["d{a;b}/t.csv"]
    assert opened(tmp_path / "d*" / "*.csv") == ["d*/t.csv"]
    assert opened(tmp_path / "d[1]" / "t[1].csv") == ["d1/t1.csv"]  # no folder of that name: a pattern
    for name in ("a::b/t::u.csv", "d.tar/metadata.csv"):  # not a chain of fsspec, nor a shard
        write_csv(tmp_path / name, name)
    assert opened(tmp_path / "a::b" / "t::u.csv") == ["a::b/t::u.csv"]
    assert opened(tmp_path / "d.tar") == ["d.tar/metadata.csv"]
    monkeypatch.chdir(tmp_path / "d1")
    assert opened("*.csv") == ["d1/t1.csv", "d1/t[1].csv"]


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_csv(tmp_path / "pictures" / "t.csv", "a")
    (tmp_path / "t.csv").write_text("image,caption\n0.png,b")
    write_shards(tmp_path / "shards", [2])
    assert opened("~/pictures/t.csv") == ["a"]
    assert opened("~/pictures/*.csv") == ["a"]
    assert len(open_rows(["~/shards"], SourceOptions())) == len(open_rows(["~/shards/00000.tar"], SourceOptions())) == 2
    options = SourceOptions(columns=TableColumns(), image_folder=Path("~/pictures"))
    row = open_rows(["~/t.csv"], options).read(0)
    assert isinstance(row, Row)
    assert row.image == tmp_path / "pictures" / "0.png"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv is neither a file nor a folder"):
        opened(tmp_path / "t.csv")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    os.mkfifo(tmp_path / "data.arrow")
    with pytest.raises(InputError, match=r"data\.arrow is no file; the data set that names it is not whole"):
        opened(tmp_path)


@pytest.mark.parametrize("source", ["t.csv", "folder", "x" * 300])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "t.csv", "a")
    (tmp_path / "folder").mkdir()

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("clipx.data.rows.opening.CsvTable", refuse)
    monkeypatch.setattr("clipx.data.rows.opening.split_names", refuse)
    with pytest.raises(InputError, match=r"cannot be read: (Permission denied|File name too long)"):
        opened(tmp_path / source)


def test_a_hidden_tar_makes_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a picture")
    (tmp_path / "._00000.tar").write_bytes(b"of a Mac")
    assert opened(tmp_path) == ["a picture"]
