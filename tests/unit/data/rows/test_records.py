"""Records and columns of every kind of source are what the json members of samples hold, and read no picture."""

import datetime
import decimal
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_sets import write_saved
from made_shards import make, samples
from shard_files import png, write_shards

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import LeftOutError, Rows, TableColumns
from clipx.data.rows.values import cell_text
from clipx.errors import InputError

KEPT = TableColumns(image="photo", needs_captions=False, needs_image=False, keeps_all=True)
RECORDS = [
    {"title": "a mug", "category": "kitchen", "label": 1, "captions": "first", "price": 2.5},
    {"title": "007", "category": "office", "label": 2, "captions": "second", "price": 3},
    {"title": "a pen", "label": 3},
]


def lines(folder: Path) -> list[dict[str, object]]:
    return [{"photo": f"{number}.png", **record} for number, record in enumerate(RECORDS)]


def write_csv(folder: Path) -> Path:
    names = ["photo", *RECORDS[0]]
    rows = [",".join(str(line.get(name, "")) for name in names) for line in lines(folder)]
    (folder / "t.csv").write_text("\n".join([",".join(names), *rows]))
    return folder / "t.csv"


def write_jsonl(folder: Path) -> Path:
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines(folder))))
    return folder / "t.jsonl"


def write_list(folder: Path) -> Path:
    (folder / "t.json").write_text(json.dumps(lines(folder)))
    return folder / "t.json"


def table_of(folder: Path) -> pa.Table:
    columns = {name: [record.get(name) for record in RECORDS] for name in RECORDS[0]}
    return pa.table({"photo": [{"bytes": png(number), "path": None} for number in range(3)], **columns})


def write_parquet(folder: Path) -> Path:
    pq.write_table(table_of(folder), folder / "t.parquet", row_group_size=2)
    return folder / "t.parquet"


def write_arrow(folder: Path) -> Path:
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table_of(folder).schema) as writer:
        writer.write_table(table_of(folder))
    return folder / "t.arrow"


def write_stored(folder: Path) -> Path:
    members = {
        number: {"png": png(number), "json": json.dumps(record).encode()} for number, record in enumerate(RECORDS)
    }
    write_shards(folder / "in", [2, 1], replaced=members)
    return folder / "in"


KINDS: dict[str, Callable[[Path], Path]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "list": write_list,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "shards": write_stored,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(len(RECORDS)):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


def opened(source: Path) -> Rows:
    """The rows as another process has them."""
    columns = TableColumns(needs_captions=False) if source.is_dir() else KEPT
    return pickle.loads(pickle.dumps(open_rows([str(source)], SourceOptions(columns=columns))))


@pytest.mark.parametrize("kind", KINDS)
def test_all_columns_but_the_picture_s_stand_in_the_sample_by_their_names(pictures: Path, kind: str) -> None:
    rows = opened(KINDS[kind](pictures))
    assert list(rows.records()) == RECORDS
    assert rows.labels() is None
    make(rows, pictures / "out", allow_absent=True, group_rows=False)
    found = list(samples(pictures / "out").values())
    assert [json.loads(fields["json"]) for fields in found] == RECORDS
    assert [fields["png"] for fields in found] == [png(number) for number in range(3)]
    assert all(fields.keys() == {"png", "json"} for fields in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_by_its_name(pictures: Path, kind: str) -> None:
    rows = opened(KINDS[kind](pictures))
    assert list(rows.column("category")) == ["kitchen", "office", None]
    assert list(rows.column("captions")) == ["first", "second", None]
    with pytest.raises(InputError, match=r"there is no column 'Price'; did you mean 'price'\?"):
        rows.column("Price")
    with pytest.raises(InputError, match=r"there is no column 'xyz'; the columns are .*title, category"):
        rows.column("xyz")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"shards"}))
def test_no_picture_is_read_for_it(pictures: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = opened(KINDS[kind](pictures))
    read = []
    if kind == "parquet":
        whole = type(rows)._read_group
        monkeypatch.setattr(type(rows), "_read_group", lambda self, *given: read.append(given) or whole(self, *given))
    for number in range(len(RECORDS)):
        (pictures / f"{number}.png").unlink()
    assert list(rows.records()) == RECORDS
    assert all("photo" not in columns for _, columns in read)


def test_a_row_that_cannot_be_read_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"photo": "0.png", "a": 1}\n{"a": \n{"a": NaN, "b": [1, null], "photo": ""}\n')
    rows = opened(tmp_path / "t.jsonl")
    assert list(rows.records()) == [{"a": 1}, {}, {"b": [1, None]}]
    assert list(rows.column("a")) == [1, None, None]


def test_records_of_a_csv_are_those_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'photo,title,price\n0.png,"two\nlines",1\n1.png,one\n2.png,too,many,values\n\n3.png,"a,1\n4.png,b",2\n'
    )
    rows = opened(tmp_path / "t.csv")
    assert list(rows.records()) == [{"title": "two\nlines", "price": 1}, {"title": "one"}, {}, {}]
    for row, expected in enumerate(rows.records()):
        if expected:
            assert rows.read(row).record == expected
        else:
            with pytest.raises(LeftOutError, match="unreadable row"):
                rows.read(row)


def test_without_keeping_all_captions_are_no_fields(pictures: Path) -> None:
    rows = open_rows(
        [str(write_csv(pictures))], SourceOptions(columns=TableColumns(image="photo", captions=["captions", "title"]))
    )
    assert next(iter(rows.records())) == {"category": "kitchen", "label": 1, "price": 2.5}
    assert list(rows.column("title")) == ["a mug", "007", "a pen"]  # a column is one all the same
    make(rows, pictures / "out", group_rows=False)
    first = samples(pictures / "out")["000000000"]
    assert json.loads(first["json"]) == {
        "photo": "0.png",
        "category": "kitchen",
        "label": 1,
        "price": 2.5,
        "captions": ["first", "a mug"],
    }


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    columns = {
        "price": [decimal.Decimal("1.50")],
        "day": [datetime.date(2024, 2, 29)],
        "thumbnail": [b"\x00"],
        "image": ["not taken for a picture"],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    options = SourceOptions(columns=TableColumns(needs_captions=False, needs_image=False, keeps_all=True))
    rows = open_rows([str(tmp_path / "t.parquet")], options)
    expected = {"price": "1.50", "day": "2024-02-29", "image": "not taken for a picture"}
    assert list(rows.records()) == [expected]
    make(rows, tmp_path / "out", allow_absent=True)
    (found,) = samples(tmp_path / "out").values()
    assert json.loads(found["json"]) == expected


def test_labels_of_a_type_are_the_names_of_their_classes(tmp_path: Path) -> None:
    write_saved(tmp_path / "set")
    columns = TableColumns(image="image", needs_captions=False, keeps_all=True)
    rows = open_rows([str(tmp_path / "set")], SourceOptions(columns=columns))
    words = set(rows.column("label"))
    assert words == {"cat", "dog", "red fox"}
    assert [record["label"] for record in rows.records()] == list(rows.column("label"))
    assert rows.labels() is None


def test_files_beside_pictures_are_fields(pictures: Path) -> None:
    (pictures / "0.txt").write_text(" a mug\n")
    (pictures / "0.json").write_text('{"price": 1, "caption": "x"}')
    (pictures / "1.json").write_text('{"price": 2, "txt": "y"}')
    (pictures / "2.json").write_text("[]")
    columns = TableColumns(needs_captions=False, keeps_all=True)
    rows = open_rows([str(pictures)], SourceOptions(columns=columns))
    expected = [
        {"file_name": "0.png", "txt": " a mug\n", "price": 1, "caption": "x"},
        {"file_name": "1.png", "txt": "y", "price": 2},
        {},
    ]
    assert list(rows.records()) == expected
    made = make(rows, pictures / "out", allow_absent=True)
    assert (made.num_samples, made.left_out) == (2, {"no caption": 1})


def test_several_sources_have_the_columns_of_all(pictures: Path) -> None:
    (pictures / "a.jsonl").write_text('{"photo": "0.png", "a": 1}')
    (pictures / "b.jsonl").write_text('{"photo": "1.png", "b": 2}')
    rows = open_rows([str(pictures / "*.jsonl")], SourceOptions(columns=KEPT))
    assert rows.keeps_all
    assert list(rows.column_names()) == ["photo", "a", "b"]
    assert (list(rows.column("a")), list(rows.column("b"))) == ([1, None], [None, 2])
    assert list(rows.records()) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (" 3 ", "3"),
        (0.5, "0.5"),
        (1e300, "1e+300"),
        (True, "True"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        ("\u200b \u00ad", None),
        (float("nan"), None),
        (b"x", None),
        (None, None),
    ],
)
def test_text_of_a_cell(value: object, text: str | None) -> None:
    assert cell_text(value) == text
