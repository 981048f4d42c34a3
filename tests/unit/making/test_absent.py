"""Rows without a picture or a text: which are samples, what these hold, and what is still left out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_shards import ABSENT, left_out, make, opened, samples
from shard_files import png, write_tar

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import TableColumns
from clipx.errors import InputError, RunError
from clipx.making.images import ImageOptions

TABLE = """image,caption,price
0.png,a cat,1
,a dog,2
1.png,,3
not there.png,a bird,4
not there.png,a fish,5
,,6
, ,
not there.png,,
broken.png,a hen,9
https://x.org/1.jpg,an owl,10
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "broken.png").write_bytes(png(2)[:40])
    (tmp_path / "t.csv").write_text(TABLE)
    return tmp_path / "t.csv"


def test_what_is_there_becomes_a_sample(table: Path, tmp_path: Path) -> None:
    made = make(opened(table), tmp_path / "out", allow_absent=True)
    found = samples(tmp_path / "out")
    assert {key: sorted(fields) for key, fields in found.items()} == {
        "000000000": ["json", "png", "txt"],
        "000000001": ["json", "txt"],
        "000000002": ["json", "png"],
        "000000003": ["json", "txt"],  # one file that is not there is no picture of two rows
        "000000004": ["json", "txt"],
        "000000005": ["json"],
    }
    assert json.loads(found["000000005"]["json"]) == {"price": 6}
    assert sorted(left_out(tmp_path / "out")) == [
        (6, "nothing in it"),
        (7, "nothing in it"),
        (8, "unreadable picture"),
        (9, "a URL"),
    ]
    assert (made.num_samples, made.num_without_picture, made.num_without_text) == (6, 4, 2)
    assert made.extensions == {"png": 2}


def test_only_if_it_is_allowed(table: Path, tmp_path: Path) -> None:
    make(open_rows([str(table)], SourceOptions()), tmp_path / "out")
    assert sorted(samples(tmp_path / "out")) == ["000000000"]
    reasons = ["no picture", "no caption", "missing file", "missing file"]
    assert [reason for row, reason in left_out(tmp_path / "out") if 0 < row < 5] == reasons


@pytest.mark.parametrize("picture", [b"", None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}])
def test_absent_pictures_within_a_table(tmp_path: Path, picture: object) -> None:
    there = {"bytes": png(0), "path": "0.png"} if isinstance(picture, dict) else png(0)
    pq.write_table(pa.table({"image": [there, picture], "text": ["a", "b"]}), tmp_path / "t.parquet")
    make(opened(tmp_path / "t.parquet"), tmp_path / "out", allow_absent=True)
    assert [sorted(fields.keys() - {"json"}) for fields in samples(tmp_path / "out").values()] == [
        ["png", "txt"],
        ["txt"],
    ]


def test_a_value_that_names_no_picture_is_not_absent(tmp_path: Path) -> None:
    rows = [{"image": value, "text": "a"} for value in (7, ["0.png"], float("nan"), "\u200b")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(opened(tmp_path / "t.jsonl"), tmp_path / "out", allow_absent=True)
    assert sorted(samples(tmp_path / "out")) == ["000000002", "000000003"]
    assert left_out(tmp_path / "out") == [(0, "no picture"), (1, "no picture")]


def test_what_is_there_and_is_no_file_is_not_absent(tmp_path: Path) -> None:
    (tmp_path / "0.png").mkdir()
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text("image,caption\n0.png,a\n1.png,b\n2.png,c\n")
    make(opened(tmp_path / "t.csv"), tmp_path / "out", allow_absent=True)
    assert sorted(samples(tmp_path / "out")) == ["000000002"]
    assert left_out(tmp_path / "out") == [(0, "unreadable picture"), (1, "unreadable picture")]


def test_a_key_alone_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption,id\n,a,x\n,,y\n")
    make(opened(tmp_path / "t.csv"), tmp_path / "out", allow_absent=True, key="id")
    assert sorted(samples(tmp_path / "out")) == ["x"]
    assert left_out(tmp_path / "out") == [(1, "nothing in it")]


def test_stored_samples_without_a_picture_stay_when_pictures_are_reduced(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", [("a.json", b"{}"), ("b.png", png(0)), ("b.txt", b"b")])
    options = {"images": ImageOptions(quality=90)}
    make(opened(tmp_path / "in"), tmp_path / "out", allow_absent=True, **options)
    assert {key: sorted(fields) for key, fields in samples(tmp_path / "out").items()} == {
        "a": ["json"],
        "b": ["jpg", "txt"],
    }
    make(opened(tmp_path / "in"), tmp_path / "without", **options)
    assert sorted(samples(tmp_path / "without")) == ["b"]


def test_equal_bytes_for_any_number_of_workers_and_in_a_second_start(table: Path, tmp_path: Path) -> None:
    options = {"allow_absent": True, "shard_size": 2, "key": "price"}
    lines = [line.rpartition(",")[0] + f",{number}" for number, line in enumerate(TABLE.splitlines())]
    table.write_text("\n".join(["image,caption,price", *lines[1:]]))
    for workers in (1, 2):
        make(opened(table), tmp_path / f"out{workers}", workers=workers, **options)
    assert samples(tmp_path / "out1").keys() == {"1", "2", "3", "4", "5"}
    names = {path.name for path in (tmp_path / "out1").glob("*.tar")}
    assert names == {path.name for path in (tmp_path / "out2").glob("*.tar")}
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()
    with pytest.raises(InputError, match="key was price, now None"):
        make(opened(table), tmp_path / "out1", allow_absent=True, shard_size=2)


def test_a_wrong_folder_is_not_taken_for_absence(table: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    rows = open_rows([str(table)], SourceOptions(columns=TableColumns(**ABSENT), image_folder=tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"none of the 6 pictures that rows name is there, e\.g\. .*--image-folder"):
        make(rows, tmp_path / "out", allow_absent=True)
    make(opened(table), tmp_path / "out", allow_absent=True)  # the folder is still free
    with pytest.raises(InputError, match=r"nowhere is no folder; name the one"):
        open_rows([str(table)], SourceOptions(columns=TableColumns(**ABSENT), image_folder=tmp_path / "nowhere"))


def test_a_table_without_a_column_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("title;price, EUR\na cat;1\n;2\n;\n")
    rows = opened(tmp_path / "t.csv", captions=["title"])
    assert (rows.picture_keys(), list(rows.files())) == (None, [])
    make(rows, tmp_path / "out", allow_absent=True)
    found = samples(tmp_path / "out")
    assert found["000000000"] == {"txt": b"a cat", "json": b'{"price, EUR": 1}'}
    assert found["000000001"] == {"json": b'{"price, EUR": 2}'}
    assert left_out(tmp_path / "out") == [(2, "nothing in it")]


def test_a_table_of_which_no_column_is_known_has_names_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0.png,1\n1.png,2\n")
    with pytest.raises(InputError, match=r"names no columns but holds values \(0\.png, 1\)"):
        opened(tmp_path / "t.csv", keeps_all=True)


class TestFolders:
    def test_a_text_that_is_not_there_is_absent_and_a_broken_one_is_not(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for number in range(4):
            (folder / f"{number}.png").write_bytes(png(number))
        (folder / "0.txt").write_text("a cat")
        (folder / "1.txt").write_text(" ")
        (folder / "2.txt").write_bytes(b"\xff\xfe\xff")
        (folder / "3.json").write_text("{")
        make(opened(folder), tmp_path / "out", allow_absent=True)
        found = {key: sorted(fields) for key, fields in samples(tmp_path / "out").items()}
        assert found == {"000000000": ["json", "png", "txt"], "000000001": ["json", "png"]}
        assert left_out(tmp_path / "out") == [(2, "no caption"), (3, "no caption")]

    def test_of_several_fields_those_that_are_there_are_captions(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for number, record in enumerate([{"title": "mug", "brand": "acme"}, {"brand": "acme"}, {"price": 1}]):
            (folder / f"{number}.png").write_bytes(png(number))
            (folder / f"{number}.json").write_text(json.dumps(record))
        rows = opened(folder, captions=["title", "brand"], joined_by=", ")
        assert [rows.read(number).captions for number in range(3)] == [["mug, acme"], ["acme"], []]
        assert rows.read(2).record == {"file_name": "2.png", "price": 1}


class TestJoinedCaptions:
    @pytest.mark.parametrize(
        ("cells", "caption"),
        [
            (["mug", "acme", 6], "mug | acme | 6"),
            ([" ", None, 0.5], "0.5"),
            ([["a", "", "b"], float("nan"), True], "a | b"),
            (["", None, None], None),
        ],
    )
    def test_cells_in_the_order_of_the_columns(self, tmp_path: Path, cells: list[object], caption: str | None) -> None:
        record = dict(zip(["title", "brand", "pack"], cells, strict=True))
        (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.png", "title": "x", "brand": 1, "pack": 1}) + "\n")
        with (tmp_path / "t.jsonl").open("a") as file:
            file.write(json.dumps({"image": "0.png", **record}))
        rows = opened(tmp_path / "t.jsonl", captions=["title", "brand", "pack"], joined_by=" | ")
        assert rows.read(1).captions == ([] if caption is None else [caption])

    def test_lines_of_a_csv(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("image,title,brand\n0.png,mug,acme\n0.png,,acme\n0.png,,\n")
        columns = TableColumns(captions=["brand", "title"], joined_by=", ")
        rows = open_rows([str(tmp_path / "t.csv")], SourceOptions(columns=columns))
        assert [rows.read(number).captions for number in (0, 1)] == [["acme, mug"], ["acme"]]
        (tmp_path / "0.png").write_bytes(png(0))
        make(rows, tmp_path / "out", group_rows=False)
        assert left_out(tmp_path / "out") == [(2, "no caption")]

    def test_sources_without_columns_have_no_use_for_it(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", [("a.txt", b"a")])
        with pytest.raises(InputError, match="--join-captions has no meaning"):
            open_rows([str(tmp_path / "0.tar")], SourceOptions(columns=TableColumns(joined_by="")))


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n,\n,\n")
    with pytest.raises(RunError, match="2 of 2 rows make no sample: nothing in it 2"):
        make(opened(tmp_path / "t.csv"), tmp_path / "out", allow_absent=True)
