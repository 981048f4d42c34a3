"""From tables to a config that can be trained: shards in the run folder, facts, and what a person is told."""

import csv
import json
import logging
from pathlib import Path

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
    return fit_config(
        inputs, targets, run_dir=str(tmp_path / "run"), data={"train": str(table), "val": 0.25, **(data or {})}, **further
    )


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
    assert f"{table}: 40 rows: 32 with photo, 36 with title, 40 with weight; {len(train)} for training" in caplog.text
    assert "2 classes (most often" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.tar")}
    caplog.clear()
    assert resolve(config) == resolved
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.tar")} == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_resolved_config_is_complete(tmp_path):
    resolved = resolve(config_of(tmp_path, table := write_table(tmp_path)))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(resolved))
    assert load_config([path]) == resolved
    table.unlink()
    assert resolve(load_config([path])) == resolved


def test_the_same_rows_are_held_out_for_ever_and_groups_are_not_parted(tmp_path):
    table = write_table(tmp_path, num=80)
    first = resolve(config_of(tmp_path, table, data={"key": "sku", "group": "family"}))
    held_out = {int(key[1:]) // 4 for key in keys(first.data.val_shards)}
    assert held_out.isdisjoint({int(key[1:]) // 4 for key in keys(first.data.train_shards)})
    more = write_table(tmp_path, num=100, name="more.csv")
    second = resolve(
        config_of(tmp_path, more, data={"key": "sku", "group": "family"}).__class__(
            **{**vars(config_of(tmp_path, more, data={"key": "sku", "group": "family"})), "run_dir": str(tmp_path / "2")}
        )
    )
    assert set(keys(first.data.val_shards)) <= set(keys(second.data.val_shards))
