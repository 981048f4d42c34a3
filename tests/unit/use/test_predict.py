"""Predictions of tables as files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fit_rows import (
    BROKEN,
    HEAVY,
    LOST,
    NO_PHOTO,
    NO_TITLE,
    NOTHING,
    NUM_ROWS,
    TARGETS,
    row_config,
    row_model,
    write_table,
)
from shard_files import write_tar
from tiny_clip import encoded, picture

from clipx.data.fit_cells import labels
from clipx.errors import InputError
from clipx.pretrained import Fitted
from clipx.use.opened_table import open_table
from clipx.use.predict import Predicted, PredictOptions, predict_table

pq = pytest.importorskip("pyarrow.parquet")

SMALL = PredictOptions(batch_size=4)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return row_model()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table"))


def _predict(fitted: Fitted, table: Path, out: Path, options: PredictOptions = SMALL) -> Predicted:
    rows, key = open_table(str(table), fitted.fit_config)
    return predict_table(fitted, rows, out, replace(options, key=key))


def _lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _rows(table: Path) -> list[dict[str, object]]:
    """The rows as a program would give them."""
    rows: list[dict[str, object]] = [dict(row) for row in _lines(table)]
    for row in rows:
        row["photo"] = table.parent / str(row["photo"]) if row["photo"] else None
    return rows


def test_each_row_is_a_line_of_what_a_program_would_get(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    predicted = _predict(fitted, table, tmp_path / "out.csv")
    lines, expected = _lines(tmp_path / "out.csv"), fitted.predict(_rows(table), batch_size=4)
    assert list(lines[0]) == ["row", "shape", "shape_probability", "price", "tags", "present", "problem"]
    assert [line["row"] for line in lines] == [str(row) for row in range(NUM_ROWS)]
    for line, row in zip(lines, expected, strict=True):
        assert line["problem"].endswith(str(row.get("problem", "")))
        assert line["present"] == ";".join(row["present"])  # type: ignore[arg-type]
        if row["price"] is None:
            assert {line[name] for name in ("shape", "shape_probability", "price", "tags")} == {""}
            continue
        assert line["shape"] == row["shape"]
        assert float(line["price"]) == pytest.approx(row["price"], rel=1e-6)
        assert float(line["shape_probability"]) == pytest.approx(row["shape_probability"], rel=1e-6)
        assert line["tags"] == "|".join(row["tags"])  # type: ignore[arg-type]
    assert (predicted.num_rows, predicted.num_null) == (NUM_ROWS, 3)
    assert [row for row, _ in predicted.problems] == [NOTHING, BROKEN, HEAVY]


def test_what_was_absent_and_what_was_wrong_stand_beside_it(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    predicted = _predict(fitted, table, tmp_path / "out.csv")
    lines = _lines(tmp_path / "out.csv")
    assert lines[NO_PHOTO]["present"] == "title;weight;shop"
    assert lines[LOST]["present"] == "title;weight;shop"
    assert lines[NO_TITLE]["present"] == "photo;weight;shop"
    assert lines[4]["present"] == "photo;title;shop"
    assert predicted.absent == {"photo": 2, "title": 1, "weight": 8, "shop": 0}
    assert lines[NOTHING]["problem"] == "none of the inputs is there (photo, title, weight, shop)"
    assert "picture of 10 bytes" in lines[BROKEN]["problem"]
    assert lines[HEAVY]["problem"] == "column 'weight': 'heavy' is no number"


def test_parquet_holds_what_csv_holds(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    options = replace(SMALL, probabilities=True)
    for name in ("out.csv", "out.parquet"):
        _predict(fitted, table, tmp_path / name, options)
    found, lines = pq.read_table(tmp_path / "out.parquet"), _lines(tmp_path / "out.csv")
    assert found.column_names == list(lines[0])
    assert [name for name in found.column_names if "probability" in name] == [
        "shape_probability",
        *(f"shape_probability_{name}" for name in TARGETS["shape"]["classes"]),
        *(f"tags_probability_{name}" for name in TARGETS["tags"]["classes"]),
    ]
    for row, line in zip(found.to_pylist(), lines, strict=True):
        assert (row["shape"] or "", row["problem"] or "") == (line["shape"], line["problem"])
        assert ("|".join(row["tags"] or ()), ";".join(row["present"] or ())) == (line["tags"], line["present"])
        for name in ("price", "shape_probability_ring", "tags_probability_new"):
            assert row[name] == (float(line[name]) if line[name] else None) or row[name] == pytest.approx(
                float(line[name]), rel=1e-6
            )


def test_blocks_decide_nothing_but_rounding(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    for name, size in (("a.csv", 4), ("b.csv", 7)):
        _predict(fitted, table, tmp_path / name, PredictOptions(batch_size=size))
    for one, other in zip(_lines(tmp_path / "a.csv"), _lines(tmp_path / "b.csv"), strict=True):
        assert (one["shape"], one["present"], one["problem"]) == (other["shape"], other["present"], other["problem"])
        if one["price"]:
            assert float(one["price"]) == pytest.approx(float(other["price"]), rel=1e-5)


def test_rows_bear_the_key_of_the_run(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    config = fitted.fit_config
    keyed = Fitted(fitted.model, replace(config, data=replace(config.data, key="sku")), tokenizer=fitted.tokenizer)
    _predict(keyed, table, tmp_path / "out.csv")
    assert [line["sku"] for line in _lines(tmp_path / "out.csv")] == [f"sku-{row}" for row in range(NUM_ROWS)]


def test_a_key_may_be_the_path_of_the_picture(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    config = fitted.fit_config
    keyed = Fitted(fitted.model, replace(config, data=replace(config.data, key="photo")), tokenizer=fitted.tokenizer)
    _predict(keyed, table, tmp_path / "out.csv")
    assert [line["photo"] for line in _lines(tmp_path / "out.csv")] == [row["photo"] for row in _lines(table)]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_key_that_has_no_encoding_is_escaped(fitted: Fitted, tmp_path: Path, name: str) -> None:
    config = fitted.fit_config
    keyed = Fitted(fitted.model, replace(config, data=replace(config.data, key="sku")), tokenizer=fitted.tokenizer)
    table = tmp_path / "table.jsonl"
    row = {"sku": "a\ud800", "photo": None, "title": "b", "brand": None, "weight": 1, "shop": "north"}
    table.write_text(json.dumps(row) + "\n")
    _predict(keyed, table, tmp_path / name)
    rows = pq.read_table(tmp_path / name).to_pylist() if name.endswith("parquet") else _lines(tmp_path / name)
    assert rows[0]["sku"] == "a\\ud800"


def test_a_table_of_another_kind_gives_the_same(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    _predict(fitted, table, tmp_path / "out.csv")
    lists = table.with_name("table.jsonl")
    rows = [{name: cell for name, cell in row.items() if cell} for row in _lines(table)]
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _predict(fitted, lists, tmp_path / "lists.csv")
    assert (tmp_path / "lists.csv").read_text() == (tmp_path / "out.csv").read_text()


def test_shards_are_tables(fitted: Fitted, tmp_path: Path) -> None:
    record = {"title": "thing", "brand": "acme", "weight": 3, "shop": "north"}
    members = [("0.json", json.dumps(record).encode()), ("0.png", encoded(picture(3)))]
    shard = write_tar(tmp_path / "00000.tar", [*members, ("1.json", json.dumps(record).encode())])
    predicted = _predict(fitted, Path(shard), tmp_path / "out.csv")
    lines = _lines(tmp_path / "out.csv")
    assert [line["present"] for line in lines] == ["photo;title;weight;shop", "title;weight;shop"]
    assert float(lines[0]["price"]) == pytest.approx(
        fitted.predict({**record, "photo": picture(3)})[0]["price"], rel=1e-5
    )
    assert predicted.num_null == 0


def test_shards_may_name_their_pictures_and_hold_damaged_records(fitted: Fitted, tmp_path: Path) -> None:
    config = fitted.fit_config
    keyed = Fitted(fitted.model, replace(config, data=replace(config.data, key="sku")), tokenizer=fitted.tokenizer)
    record = {"sku": "s", "photo": "0.png", "title": "thing", "brand": "acme", "weight": 3, "shop": "north"}
    members = [("0.json", json.dumps(record).encode()), ("0.png", encoded(picture(3))), ("1.json", b"{")]
    shard = write_tar(tmp_path / "00000.tar", members)
    _predict(keyed, Path(shard), tmp_path / "out.csv")
    good, bad = _lines(tmp_path / "out.csv")
    assert (good["sku"], good["present"], bad["sku"]) == ("s", "photo;title;weight;shop", "")
    assert "is not JSON" in bad["problem"]


@pytest.mark.parametrize("absent", [False, True])
def test_columns_that_only_late_rows_have_are_read(fitted: Fitted, table: Path, absent: bool) -> None:
    early, late = {"title": "a", "brand": "b"}, {"photo": "3.png", "weight": 1, "shop": "north"}
    lists = table.with_name("late.jsonl")
    lists.write_text("".join(json.dumps(early | (late if row > 1000 else {})) + "\n" for row in range(1002)))
    rows, _ = open_table(str(lists), fitted.fit_config, absent=absent)
    assert rows.read(1001).image == table.parent / "3.png"  # type: ignore[union-attr]


def test_an_infinite_number_is_not_absent(fitted: Fitted, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    row = {"title": "a", "brand": None, "photo": None, "shop": "north"}
    table.write_text("".join(json.dumps({**row, "weight": value}) + "\n" for value in (1, float("inf"), float("nan"))))
    _predict(fitted, table, tmp_path / "out.csv")
    problems = [line["problem"] for line in _lines(tmp_path / "out.csv")]
    assert problems == ["", "column 'weight': 'inf' is no number", ""]


def test_an_input_that_the_table_lacks_is_said_or_absent(fitted: Fitted, tmp_path: Path) -> None:
    table = tmp_path / "titles.csv"
    table.write_text("title,brand,shop\nthing,acme,north\n")
    with pytest.raises(InputError, match=r"titles.csv: no columns photo, weight, from which this .* or give --absent"):
        open_table(str(table), fitted.fit_config)
    rows, _ = open_table(str(table), fitted.fit_config, absent=True)
    predict_table(fitted, rows, tmp_path / "out.csv", SMALL)
    assert _lines(tmp_path / "out.csv")[0]["present"] == "title;shop"


def test_paths_of_pictures_that_begin_elsewhere_are_noticed(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.csv"
    moved.write_bytes(table.read_bytes())
    with pytest.raises(InputError, match=r"not one of the pictures that it names is there, as .*0\.png; .*--image-f"):
        open_table(str(moved), fitted.fit_config)
    rows, _ = open_table(str(moved), fitted.fit_config, image_folder=table.parent)
    predict_table(fitted, rows, tmp_path / "out.csv", SMALL)
    assert _lines(tmp_path / "out.csv")[0]["present"] == "photo;title;shop"


def test_only_predictions_are_replaced(fitted: Fitted, table: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        _predict(fitted, table, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        _predict(fitted, table, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("row,shape\n1,ring\n")
    with pytest.raises(InputError, match="a file is there that holds no predictions of a fitted model"):
        _predict(fitted, table, theirs)
    pq.write_table(pq.read_table(tmp_path / "out.parquet").replace_schema_metadata(), tmp_path / "theirs.parquet")
    with pytest.raises(InputError, match="a file is there that holds no predictions of a fitted model"):
        _predict(fitted, table, tmp_path / "theirs.parquet")
    assert theirs.read_text() == "row,shape\n1,ring\n"


def test_a_table_of_which_no_row_can_be_predicted_writes_nothing(fitted: Fitted, tmp_path: Path) -> None:
    table = tmp_path / "bad.csv"
    table.write_text("photo,title,brand,weight,shop\n,,,,\n,a,,heavy,\n")
    with pytest.raises(InputError, match="not one of 2 rows can be predicted; row 0: none of the inputs is there"):
        _predict(fitted, table, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_targets_named_like_columns_of_the_file_keep_their_names(table: Path, tmp_path: Path) -> None:
    targets = dict.fromkeys(("row", "present", "problem"), TARGETS["price"])
    _predict(row_model(row_config(targets=targets)), table, tmp_path / "out.csv")
    lines = _lines(tmp_path / "out.csv")
    assert list(lines[0]) == ["row_", "row", "present", "problem", "present_", "problem_"]
    _predict(row_model(row_config(targets=targets)), table, tmp_path / "out.csv")  # it is its own


def test_what_is_said_of_a_target_moves_out_of_the_way_of_another(table: Path, tmp_path: Path) -> None:
    names = ("shape", "shape_probability", "present", "problem")
    fitted = row_model(row_config(targets=dict.fromkeys(names, TARGETS["shape"])))
    _predict(fitted, table, tmp_path / "out.csv", replace(SMALL, probabilities=True))
    lines, rows = _lines(tmp_path / "out.csv"), fitted.predict(_rows(table), batch_size=4, probabilities=True)
    assert len(lines[0]) == 1 + 4 * (2 + 3) + 2, "no column twice"
    for line, row in zip(lines, rows, strict=True):
        assert [line[name] for name in names] == [row[name] or "" for name in names]
        assert line["present_"] == ";".join(row["present_"])  # type: ignore[arg-type]
        assert bool(line["problem_"]) == ("problem_" in row)
        assert row.keys() - {"problem_"} == rows[0].keys()


def test_numbers_have_the_digits_that_tell_them_apart(table: Path, tmp_path: Path) -> None:
    seconds = {"type": "number", "mean": 1.7e9, "std": 1000.0}
    fitted = row_model(row_config(targets={"seconds": seconds, "price": TARGETS["price"]}))
    for name in ("out.csv", "out.parquet"):
        _predict(fitted, table, tmp_path / name)
    expected = [row for row in fitted.predict(_rows(table), batch_size=4) if row["price"] is not None]
    lines = [line for line in _lines(tmp_path / "out.csv") if line["price"]]
    stored = [row for row in pq.read_table(tmp_path / "out.parquet").to_pylist() if row["price"] is not None]
    for line, row, exact in zip(lines, stored, expected, strict=True):
        assert row["seconds"] == exact["seconds"]
        assert float(line["seconds"]) == pytest.approx(exact["seconds"], rel=0, abs=1e-3)
        assert len(line["price"].replace(".", "")) <= 7


def test_labels_that_hold_the_separator_are_a_list(table: Path, tmp_path: Path) -> None:
    tags = TARGETS["tags"] | {"classes": [f"a|{i}" for i in range(6)], "counts": [1] * 6}
    fitted = row_model(row_config(targets={"tags": tags}))
    _predict(fitted, table, tmp_path / "out.csv")
    cells = [line["tags"] for line in _lines(tmp_path / "out.csv")]
    expected = [row["tags"] or [] for row in fitted.predict(_rows(table), batch_size=4)]
    assert any(expected)
    assert [labels(cell, separator="|") or [] for cell in cells] == expected
