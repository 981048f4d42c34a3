"""A split is a function of the cells that decide it: whole groups, the same rows for ever, both sides as rows."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_sets import write_class_folders
from made_shards import make, samples
from shard_files import png, write_shards

from clipx.data.rows.classes import find_classes
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import Rows, TableColumns
from clipx.data.rows.split import split_rows
from clipx.data.rows.subset import Subset
from clipx.errors import InputError

EXPECTED = {  # a changed hash would move rows that somebody holds out into what they train on
    "group": [4, 5, 6, 7, 28, 29, 30, 31, 32, 33, 34, 35],
    "key": [2, 9, 20, 35, 39],
    "number": [3, 19, 26, 28, 31, 32],
}
COLUMNS = TableColumns(needs_captions=False, needs_image=False, keeps_all=True)


def write_rows(path: Path, records: list[dict[str, object]]) -> Rows:
    path.write_text("\n".join(map(json.dumps, records)))
    return open_rows([str(path)], SourceOptions(columns=COLUMNS))


def shops(count: int) -> list[dict[str, object]]:
    return [{"id": f"row {number}", "shop": f"shop {number // 4}"} for number in range(count)]


def ids(rows: Rows) -> list[object]:
    return list(rows.column("id"))


def test_both_sides_are_all_rows_and_groups_are_whole(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t.jsonl", shops(400))
    train, val = split_rows(rows, 0.2, group="shop")
    assert sorted(ids(train) + ids(val)) == sorted(ids(rows))
    assert not set(train.column("shop")) & set(val.column("shop"))
    assert 8 <= len(set(val.column("shop"))) <= 32  # of 100, 20 on average; a function of the names
    assert [record["id"] for record in val.records()] == ids(val)
    assert [val.read(row).record["id"] for row in range(len(val))] == ids(val)
    assert [rows.read(val.number(row)).record["id"] for row in range(len(val))] == ids(val)


def test_a_row_stays_where_it_is_when_others_come_go_and_move(tmp_path: Path) -> None:
    before = set(ids(split_rows(write_rows(tmp_path / "a.jsonl", shops(200)), 0.3, group="shop")[1]))
    more = [{"id": "new", "shop": "new"}, *shops(300)[::-1]]
    after = set(ids(split_rows(write_rows(tmp_path / "b.jsonl", more), 0.3, group="shop")[1]))
    assert {row for row in after if row in set(ids(write_rows(tmp_path / "a.jsonl", shops(200))))} == before
    fewer = set(ids(split_rows(write_rows(tmp_path / "c.jsonl", shops(100)), 0.3, group="shop")[1]))
    assert fewer == {row["id"] for row in shops(100)} & before
    larger = set(ids(split_rows(write_rows(tmp_path / "a.jsonl", shops(200)), 0.5, group="shop")[1]))
    assert before < larger


def test_the_same_rows_for_ever(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t.jsonl", shops(40))
    found = {
        what: [int(str(text).split()[1]) for text in ids(split_rows(rows, 0.25, **given)[1])]
        for what, given in {"group": {"group": "shop"}, "key": {"key": "id"}, "number": {}}.items()
    }
    assert found == EXPECTED


def test_an_empty_group_falls_back_to_the_key_and_that_to_the_number(tmp_path: Path) -> None:
    records = shops(100)
    by_key = set(ids(split_rows(write_rows(tmp_path / "a.jsonl", records), 0.5, key="id")[1]))
    for number, blank in enumerate([None, " ", float("nan")]):
        records[number]["shop"] = blank
    rows = write_rows(tmp_path / "b.jsonl", records)
    val = set(ids(split_rows(rows, 0.5, group="shop", key="id")[1]))
    assert [f"row {n}" in val for n in range(3)] == [f"row {n}" in by_key for n in range(3)]
    by_number = set(ids(split_rows(rows, 0.5)[1]))
    val = set(ids(split_rows(rows, 0.5, group="shop")[1]))
    assert [f"row {n}" in val for n in range(3)] == [f"row {n}" in by_number for n in range(3)]


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_a_group_is_the_same_as_a_number_a_float_or_a_text(groups: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for kind in (int, float, str):
            records = [{"id": number, "g": kind(group)} for number, group in enumerate([*groups, 17, 18, 19, 20, 21])]
            sides.append(ids(split_rows(write_rows(Path(folder) / "t.jsonl", records), 0.5, group="g")[1]))
        assert sides[0] == sides[1] == [int(number) for number in sides[2]]


@pytest.mark.parametrize(
    ("count", "share", "given", "message"),
    [
        (8, 0.001, {"group": "shop"}, r"share 0\.001 of 8 rows in 2 groups of 'shop' leaves no row for validation"),
        (3, 0.999, {"group": "shop"}, r"of 3 rows in 1 group of 'shop' leaves no row for training and all for val"),
        (3, 0.001, {}, r"of 3 rows leaves no row for validation and all for training: each row is drawn by itself"),
        (8, 0.001, {"key": "shop"}, r"of 8 rows in 2 groups of 'shop' leaves no row for validation"),
        (3, 1, {}, "share 1 for validation: it must be above 0 and below 1"),
        (3, 0.5, {"group": "shops"}, "there is no column 'shops'; did you mean 'shop'"),
        (3, 0.5, {"key": "key"}, "there is no column 'key'; the columns are id, shop"),
    ],
)
def test_splits_that_are_none(tmp_path: Path, count: int, share: float, given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_rows(write_rows(tmp_path / "t.jsonl", shops(count)), share, **given)


def test_samples_of_shards_by_their_json(tmp_path: Path) -> None:
    stored = {n: {"png": png(n), "json": json.dumps({"g": n // 2}).encode()} for n in range(12)}
    write_shards(tmp_path / "in", [7, 5], replaced=stored)
    rows = open_rows([str(tmp_path / "in")], SourceOptions())
    train, val = split_rows(rows, 0.4, group="g")
    assert len(train) + len(val) == 12
    assert not set(train.column("g")) & set(val.column("g"))
    assert list(val.shards()) == list(rows.shards())


class TestSubset:
    def test_another_process_reads_the_same_rows(self, tmp_path: Path) -> None:
        rows = write_rows(tmp_path / "t.jsonl", shops(9))
        part = pickle.loads(pickle.dumps(Subset(rows, np.array([1, 4, 5]))))
        assert ids(part) == ["row 1", "row 4", "row 5"]
        assert part.keeps_all

    def test_its_identity_is_that_of_the_source_and_of_the_rows(self, tmp_path: Path) -> None:
        rows = write_rows(tmp_path / "t.jsonl", shops(9))
        chosen = [[1, 4], [1, 5], [1]]
        found = [json.dumps(Subset(rows, np.array(numbers)).identity()) for numbers in chosen]
        assert len(set(found)) == 3
        assert json.dumps(Subset(rows, np.array(chosen[0])).identity()) == found[0]
        more = write_rows(tmp_path / "t.jsonl", shops(12))
        assert json.dumps(Subset(more, np.array(chosen[0])).identity()) != found[0]

    def test_pictures_labels_and_classes_are_those_of_its_rows(self, tmp_path: Path) -> None:
        write_class_folders(tmp_path / "set")
        rows = open_rows([str(tmp_path / "set")], SourceOptions())
        part = Subset(rows, np.array([0, 6]))
        labels = list(rows.labels() or ())
        assert list(part.labels() or ()) == [labels[0], labels[6]]
        assert find_classes(part, origin="x") == find_classes(
            rows, origin="x"
        )  # a number means one class on both sides
        assert part.picture_keys() is None
        lines = [{"image": f"{number // 2}.png", "caption": "c"} for number in range(4)]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        table = open_rows([str(tmp_path / "t.jsonl")], SourceOptions())
        keys = list(table.picture_keys() or ())
        assert list(Subset(table, np.array([0, 3])).picture_keys() or ()) == [keys[0], keys[3]]

    def test_rows_that_are_read_together_still_are(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"image": [png(n) for n in range(40)], "text": [f"picture {n}" for n in range(40)]})
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=10)
        part = Subset(open_rows([str(tmp_path / "t.parquet")], SourceOptions()), np.arange(0, 40, 4))
        assert part.block_rows == 3
        make(part, tmp_path / "out", shard_size=4, shuffle=1)
        found = samples(tmp_path / "out")
        assert sorted(found) == [f"{number:09}" for number in range(0, 40, 4)]
        assert all(fields["png"] == png(int(key)) for key, fields in found.items())
