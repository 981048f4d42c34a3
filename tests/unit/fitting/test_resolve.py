"""From tables to a config that can be trained: shards in the run folder, facts, and what a person is told."""

import csv
import json
import logging
from dataclasses import replace

import pytest
from fit_tables import fit_config, sample, write_samples
from shard_files import png

from clipx.config.load import dump_config, load_config
from clipx.data.index.shard_index import build_index
from clipx.errors import InputError
from clipx.fitting.resolve import resolve

INPUTS = {"photo": "image", "title": {"type": "text", "columns": ["title", "brand"]}, "weight": "number"}
TARGETS = {"category": "class", "price": "number", "tags": "labels"}
COLUMNS = ["sku", "photo", "title", "brand", "weight", "category", "price", "tags", "family"]


def write_table(folder, num=40, name="table.csv", **changes):
    """A table whose columns are functions of the row; `changes` are cells of columns, by row."""
    (folder / "photos").mkdir(exist_ok=True)
    path = folder / name
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in range(num):
            photo = f"photos/{row}.png" if row % 5 else ""
            if photo:
                (folder / photo).write_bytes(png(row))
            cells = [f"s{row}", photo, "" if row % 5 == 1 else f"thing {row}", "Ace" if row % 2 else "", row / 10]
            cells += ["even" if row % 2 == 0 else "odd", 1 + row, "a;b" if row % 3 else "a", f"f{row // 4}"]
            of_row = dict(zip(COLUMNS, cells, strict=True))
            writer.writerow(of_row | {column: values[row] for column, values in changes.items() if row in values})
    return path


def config_of(tmp_path, table, *, data=None, inputs=INPUTS, targets=TARGETS, **further):
    further = {"run_dir": str(tmp_path / "run"), "data": {"train": str(table), "val": 0.25, **(data or {})}, **further}
    return fit_config(inputs, targets, **further)


def keys(shards):
    """The keys of all samples, in the order of the shards."""
    index = build_index(shards)
    places = [(shard, place) for shard, count in enumerate(index.counts) for place in range(count)]
    return [index.offsets(shard).key(place) for shard, place in places]


def test_a_table_becomes_shards_with_facts_and_a_second_start_finds_them(tmp_path, caplog):
    table = write_table(tmp_path)
    config = config_of(tmp_path, table, data={"key": "sku"})
    with caplog.at_level(logging.INFO):
        resolved = resolve(config)
    assert resolved.is_resolved
    train, held_out = keys(resolved.data.train_shards), keys(resolved.data.val_shards)
    assert sorted(train + held_out) == sorted(f"s{row}" for row in range(40))
    assert resolved.data.num_train == len(train) > len(held_out) > 0
    assert resolved.targets["category"].classes == ("even", "odd")
    assert f": 40 rows: 32 with photo, 36 with title, 40 with weight; {len(train)} for training" in caplog.text
    assert "2 classes (most often" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.tar")}
    caplog.clear()
    assert resolve(config) == resolved
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.tar")} == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_resolved_config_is_complete(tmp_path):
    resolved = resolve(config_of(tmp_path, table := write_table(tmp_path)))
    both = keys(resolved.data.train_shards) + keys(resolved.data.val_shards)
    assert sorted(both) == [f"{row:09}" for row in range(40)]
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(resolved))
    assert load_config([path]) == resolved
    table.unlink()
    assert resolve(load_config([path])) == resolved


def test_rows_of_one_picture_are_samples_of_their_own(tmp_path):
    resolved = resolve(config_of(tmp_path, write_table(tmp_path, photo=dict.fromkeys(range(40), "photos/1.png"))))
    assert len(keys(resolved.data.train_shards) + keys(resolved.data.val_shards)) == 40


def test_a_copied_config_tells_that_it_reads_another_run(tmp_path, caplog):
    resolved = resolve(config_of(tmp_path, write_table(tmp_path)))
    assert resolve(resolved) is resolved
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    other = replace(resolved, run_dir=str(tmp_path / "other"))
    assert resolve(other) is other
    assert "are of another run" in caplog.text


def test_the_same_rows_are_held_out_for_ever_and_groups_are_not_parted(tmp_path):
    table = write_table(tmp_path, num=80)
    first = resolve(config_of(tmp_path, table, data={"key": "sku", "group": "family"}))
    held_out = {int(key[1:]) // 4 for key in keys(first.data.val_shards)}
    assert held_out.isdisjoint({int(key[1:]) // 4 for key in keys(first.data.train_shards)})
    more = write_table(tmp_path, num=100, name="more.csv")
    second = resolve(config_of(tmp_path, more, data={"key": "sku", "group": "family"}, run_dir=str(tmp_path / "again")))
    assert set(keys(first.data.val_shards)) <= set(keys(second.data.val_shards))
    assert set(keys(first.data.train_shards)) <= set(keys(second.data.train_shards))


def test_a_table_that_has_changed_since_the_run_began_is_refused(tmp_path):
    table = write_table(tmp_path)
    resolve(config_of(tmp_path, table))
    write_table(tmp_path, num=41)
    with pytest.raises(
        InputError, match=r"data.train: .*shards.train was begun otherwise: .*choose another run_dir"
    ) as caught:
        resolve(config_of(tmp_path, table))
    assert "--" not in str(caught.value)


def test_held_out_rows_may_be_a_table_of_their_own(tmp_path):
    table, val = write_table(tmp_path), write_table(tmp_path, num=7, name="val.csv")
    resolved = resolve(config_of(tmp_path, table, data={"val": str(val), "key": "sku"}))
    assert resolved.data.num_train == 40
    assert keys(resolved.data.val_shards) == [f"s{row}" for row in range(7)]


def test_shards_are_read_where_they_are(tmp_path):
    rows = [{"title": f"thing {row}", "kind": "ab"[row % 2]} for row in range(8)]
    shards = write_samples(tmp_path / "mine", [[sample(row, picture=number) for number, row in enumerate(rows)]])
    inputs, targets = {"photo": "image", "title": "text"}, {"kind": "class"}
    data = {"train": shards, "val": [str(tmp_path / "mine")]}
    config = fit_config(inputs, targets, run_dir=str(tmp_path / "run"), data=data)
    resolved = resolve(config)
    assert (resolved.data.train_shards, resolved.data.val_shards) == (shards, [str(tmp_path / "mine")])
    assert resolved.data.num_train == 8
    assert not (tmp_path / "run").exists()


def test_of_shards_a_share_is_held_out_in_shards_of_the_run(tmp_path):
    rows = [{"title": f"thing {row}", "kind": "ab"[row % 2]} for row in range(40)]
    shards = write_samples(tmp_path / "mine", [[sample(row) for row in rows]])
    config = fit_config(
        {"title": "text"}, {"kind": "class"}, run_dir=str(tmp_path / "run"), data={"train": shards, "val": 0.3}
    )
    resolved = resolve(config)
    train, held_out = keys(resolved.data.train_shards), keys(resolved.data.val_shards)
    assert sorted(train + held_out) == keys(shards)
    assert 0 < len(held_out) < len(train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"prise": "number"}}, "^targets.prise: .* has no column 'prise'; the nearest is 'price'"),
        ({"inputs": {"foto": "image", "title": "text"}}, "^inputs.foto: .* no column 'foto'; the nearest is 'photo'"),
        ({"inputs": {"text": {"type": "text", "columns": ["title", "brnad"]}}}, "^inputs.text: .* nearest is 'brand'"),
        ({"data": {"group": "famly"}}, "^data.group: .* no column 'famly'; the nearest is 'family'"),
        ({"data": {"key": "skew"}}, "^data.key: .* no column 'skew'"),
        ({"data": {"key": "family"}}, "^data.key=family: rows 0 and 1 have one key, 'f0'"),
        ({"data": {"val": "none.csv"}}, "^data.val: none.csv: no such file or folder"),
        ({"data": {"train": "none.csv"}}, "^data.train: none.csv: no such file or folder"),
        ({"data": {"image_folder": "nowhere"}}, "^data.train: nowhere is no folder"),
        ({"data": {"group": "one"}}, "^data.train: share 0.25 of 40 rows in 1 group of 'one' leaves no row for"),
    ],
)
def test_what_the_table_lacks_is_said_before_anything_is_made(tmp_path, change, message):
    table = write_table(tmp_path)
    text = table.read_text().splitlines()
    table.write_text("\n".join([f"{text[0]},one", *(f"{line},1" for line in text[1:])]))
    with pytest.raises(InputError, match=message) as caught:
        resolve(config_of(tmp_path, table, **change))
    assert "--" not in str(caught.value)
    assert not list(tmp_path.glob("run/**/*.tar"))


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        ({"price": {7: "n/a"}}, {"price": "number"}, "^data.train: row 7: column 'price': 'n/a' is no number"),
        ({"category": dict.fromkeys(range(40), "odd")}, {"category": "class"}, "targets.category: all .* are 'odd'"),
        ({"price": dict.fromkeys(range(40), 5)}, {"price": "number"}, "targets.price: all .* are 5;"),
        ({"price": dict.fromkeys(range(40), "")}, {"price": "number"}, "targets.price: none of the .* has a cell"),
        (
            {"photo": dict.fromkeys(range(40), "gone.png")},
            TARGETS,
            "data.train: none of the .* pictures that rows name is there",
        ),
    ],
)
def test_what_cannot_be_learned(tmp_path, changes, targets, message):
    table = write_table(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        resolve(config_of(tmp_path, table, targets=targets))


def test_a_corrected_cell_needs_no_other_run(tmp_path):
    table = write_table(tmp_path, price={7: "n/a"})
    with pytest.raises(InputError, match="correct the cell"):
        resolve(config_of(tmp_path, table))
    assert resolve(config_of(tmp_path, write_table(tmp_path))).is_resolved


def test_shards_that_are_gone_are_missed(tmp_path):
    config = config_of(tmp_path, write_table(tmp_path))
    resolve(config)
    (tmp_path / "run/shards/train/00000.tar").unlink()
    with pytest.raises(InputError, match=r"data.train: .* 1 of its 1 shards are gone; .* choose another run_dir"):
        resolve(config)


def test_labels_that_only_held_out_rows_have_are_named(tmp_path, caplog):
    table, val = write_table(tmp_path), write_table(tmp_path, name="val.csv", num=8, category={2: "new", 3: "new"})
    resolve(config_of(tmp_path, table, data={"val": str(val)}))
    assert "targets.category: 1 of the validation rows' labels" in caplog.text
    assert "new (2)" in caplog.text


def test_rows_whose_picture_cannot_be_read_are_told(tmp_path, caplog):
    table = write_table(tmp_path)
    (tmp_path / "photos" / "7.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "11.png").write_bytes(b"no picture")
    resolve(config_of(tmp_path, table, data={"val": str(table)}))
    folder = tmp_path / "run" / "shards" / "train"
    assert f"data.train: 2 of 40 rows are left out: unreadable picture (2); {folder}/left_out.jsonl names them" in (
        caplog.text
    )


@pytest.mark.parametrize(("num_empty", "is_refused"), [(1, False), (3, True)])
def test_rows_without_any_input_are_told_and_too_many_refused(tmp_path, caplog, num_empty, is_refused):
    rows = [{"title": "" if row < num_empty else f"thing {row}", "kind": "ab"[row % 2]} for row in range(200)]
    shards = write_samples(tmp_path / "mine", [[sample(row) for row in rows]])
    config = fit_config({"title": "text"}, {"kind": "class"}, data={"train": shards, "val": shards})
    if is_refused:
        with pytest.raises(InputError, match=r"data.train: of 200 rows 3 have none of the inputs .* allows 2"):
            resolve(config)
    else:
        resolve(config)
        assert "data.train: of 200 rows 1 have none of the inputs (title); they are left out" in caplog.text


def test_columns_of_objects_that_only_late_rows_have_are_found(tmp_path):
    def late(row):
        return {"kind": "ab"[row % 2], "photo": "a.png"}

    (tmp_path / "a.png").write_bytes(png(0))
    table = tmp_path / "table.jsonl"
    rows = [{"title": f"thing {row}"} | (late(row) if row > 1100 else {}) for row in range(1200)]
    table.write_text("\n".join(map(json.dumps, rows)))
    data = {"train": str(table), "val": 0.2}
    inputs = {"title": "text", "photo": "image"}
    config = fit_config(inputs, {"kind": "class"}, run_dir=str(tmp_path / "run"), data=data)
    assert resolve(config).targets["kind"].classes == ("a", "b")


def test_columns_of_one_name_are_told(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    table = pa.Table.from_arrays([pa.array(["a", "b"])] * 3, names=["title", "kind", "kind"])
    pq.write_table(table, tmp_path / "t.parquet")
    config = fit_config({"title": "text"}, {"kind": "class"}, data={"train": str(tmp_path / "t.parquet"), "val": 0.2})
    with pytest.raises(InputError, match=r"^targets.kind: .* has 2 columns 'kind'; give each a name of its"):
        resolve(config)
