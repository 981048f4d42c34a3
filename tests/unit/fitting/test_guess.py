"""What is guessed of a fit run from its table."""

import json
import math
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from shard_files import write_tar
from tiny_clip import encoded, picture

from clipx.config.fit import FitConfig
from clipx.config.validate import validate
from clipx.config.yaml_text import read_yaml
from clipx.errors import InputError
from clipx.fitting.guess import Guess, guess, require_numbers
from clipx.fitting.guessed_file import FILE, at, guessed_text, settle, with_overrides
from clipx.fitting.request import FitRequest, open_table

ENCODER = {"image": {"name": "vit_base_patch32_clip_224"}}


def _table(folder: Path, columns: dict[str, Sequence[object]]) -> str:
    path = folder / "table.jsonl"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _guess(table: str, **said: Any) -> Guess:
    request = FitRequest(table=table, **{"model": "runs/clip", "out": "runs/fit", "targets": ["y"]} | said)
    return guess(request, open_table(request))


def _many(value: Callable[[int], object], count: int = 200) -> list[object]:
    return [value(number) for number in range(count)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (_many(lambda i: ["ring", "disc", "star"][i % 3]), {"type": "class"}),
        (_many(lambda i: i % 5), {"type": "class"}),
        (_many(lambda i: str(i % 2)), {"type": "class"}),
        (_many(lambda i: i % 2 == 0), {"type": "class"}),
        (_many(lambda i: None if i % 3 else i % 2), {"type": "class"}),
        (_many(lambda i: i % 50), {"type": "number"}),
        (_many(lambda i: i / 2 - 20), {"type": "number"}),
        (_many(lambda i: f"{i / 4:.2f}"), {"type": "number"}),
        (_many(lambda i: "n/a" if i == 3 else i), {"type": "number"}),
        (_many(lambda i: math.exp(i / 20)), {"type": "number", "transform": "log"}),
        (_many(lambda i: math.exp((i % 15) / 10 + (i % 7) / 5) + i / 1e4), {"type": "number", "transform": "log"}),
        (_many(lambda i: 0 if i == 0 else math.exp(i / 20)), {"type": "number"}),
        (_many(lambda i: [["new"], ["new", "sale"], []][i % 3]), {"type": "labels"}),
        (_many(lambda i: ["new", "new;sale", "red;sale", "red"][i % 4]), {"type": "labels"}),
        (_many(lambda i: ["new", "new|sale", "red|sale", "red"][i % 4]), {"type": "labels", "separator": "|"}),
        (_many(lambda i: ["a; b", "c", "d"][i % 3]), {"type": "class"}),
    ],
)
def test_the_kind_of_a_target_follows_from_its_cells(
    tmp_path: Path, values: list[object], expected: dict[str, str]
) -> None:
    found = _guess(_table(tmp_path, {"x": _many(lambda i: f"a {i}"), "y": values}), text=["x"])
    assert found.tree["targets"] == {"y": expected}
    assert "targets.y" in found.reasons


@pytest.mark.parametrize("most_rows", [10, 1000])
def test_cells_are_looked_at_as_training_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "x": _many(lambda i: f"a {i % 9}", 40),
        "price": _many(lambda i: Decimal(i) / 4, 40),
        "day": _many(lambda i: date(2024, 1, 1 + i // 20), 40),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    monkeypatch.setattr("clipx.fitting.column_summary.MOST_ROWS", most_rows)
    targets = _guess(str(tmp_path / "t.parquet"), text=["x"], targets=["price", "day"]).tree["targets"]
    assert targets == {"price": {"type": "number"}, "day": {"type": "class"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_many(lambda i: "ring"), "target 'y' is 'ring' in all of 200 cells; name one whose cells differ"),
        (_many(lambda i: 3 if i % 2 else None), "target 'y' is '3' in all of 100 cells"),
        (_many(lambda i: f"a {i}"), "target 'y' has 200 different values in 200 cells, as a 0, a 1, a 2; classes must"),
        (_many(lambda i: None), "there is no column 'y'|column 'y' is empty"),
    ],
)
def test_a_target_from_which_nothing_is_learned_is_refused(tmp_path: Path, values: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _guess(_table(tmp_path, {"x": _many(lambda i: f"a {i}"), "y": values}), text=["x"])


def test_inputs_are_what_was_said_or_is_found(tmp_path: Path) -> None:
    columns: dict[str, Sequence[object]] = {
        "photo": _many(lambda i: f"{i % 7}.png"),
        "title": _many(lambda i: f"a {i}"),
        "brand": _many(lambda i: "acme"),
        "item weight": _many(lambda i: i / 3),
        "shop": _many(lambda i: ["north", "south"][i % 2]),
        "y": _many(lambda i: i % 2),
    }
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(number)))
    table = _table(tmp_path, columns)
    found = _guess(table, image="photo", text=["title", "brand"], inputs=["item weight", "shop"])
    assert found.tree["inputs"] == {
        "photo": {"type": "image"},
        "title": {"type": "text", "columns": ["title", "brand"]},
        "item_weight": {"type": "number", "column": "item weight"},
        "shop": {"type": "category"},
    }
    assert {"inputs.item_weight", "inputs.shop"} <= set(found.reasons)
    config = validate(FitConfig, found.tree | {"encoder": {**found.tree["encoder"], **ENCODER}})
    assert config.modalities == ("image", "text", "table")
    said = _guess(table, image="photo", text=["title"], numbers=["item weight"], categories=["shop"])
    assert said.tree["inputs"]["title"] == {"type": "text"}
    assert not [key for key in said.reasons if key.startswith("inputs")]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"text": ["x"], "targets": ["x"]}, "column 'x' is named twice"),
        ({"text": ["x"], "targets": []}, "no target; name"),
        ({}, "no input; name columns with --image"),
        ({"text": ["z"]}, r"table.jsonl: there is no column 'z'"),
        ({"text": ["x"], "group": "zz"}, r"table.jsonl: there is no column 'zz'"),
        ({"text": ["x"], "image": "foto"}, r"there is no column 'foto'; did you mean 'photo'"),
        ({"image": "photo"}, r"not one of the pictures that it names is there, as .*0\.png; say with --image-folder"),
        ({"inputs": ["photo"]}, "column 'photo' names pictures; give it as --image photo"),
        ({"inputs": ["x"]}, "column 'x' has 200 different values in 200 cells, which are no categories"),
        ({"numbers": ["x"]}, r"column 'x' is no column of numbers: 0 of 200 cells are, others are a 0, a 1"),
        ({"text": ["x"], "val": "1.5"}, "--val 1.5: a share lies between 0 and 1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    table = _table(
        tmp_path,
        {"x": _many(lambda i: f"a {i}"), "photo": _many(lambda i: f"{i % 3}.png"), "y": _many(lambda i: i % 2)},
    )
    with pytest.raises(InputError, match=message):
        _guess(table, **said)


@pytest.mark.parametrize("said", [{}, {"numbers": ["y"], "targets": ["z"]}, {"inputs": ["y"], "targets": ["z"]}])
def test_a_cell_that_is_no_number_is_named_with_its_row_before_shards_are_made(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    columns = {"x": _many(lambda i: f"a {i}"), "y": _many(lambda i: "3 EUR" if i in (7, 9) else i), "z": _many(int)}
    found = _guess(_table(tmp_path, columns), **{"text": ["x"], **said})
    with pytest.raises(InputError, match=r"table.jsonl: row 7, column 'y': '3 EUR' is no number; correct the cell"):
        require_numbers(found)
    part = "targets" if "y" in found.tree["targets"] else "inputs"
    require_numbers(with_overrides(found, [f"{part}.y.type=class"]))  # whoever says so knows why


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "warmup"),
    [(12, 2, 100, 50), (40, 4, 100, 50), (1000, 64, 100, 50), (20_000, 256, 28, 50)],
)
def test_sizes_follow_from_the_rows(tmp_path: Path, count: int, batch: int, epochs: int, warmup: int) -> None:
    table = _table(tmp_path, {"x": _many(lambda i: f"a {i % 5}", count), "y": _many(lambda i: i % 2, count)})
    tree = _guess(table, categories=["x"]).tree
    assert (tree["global_batch_size"], tree["epochs"], tree["optim"]["warmup_steps"]) == (batch, epochs, warmup)


def test_what_was_said_of_length_and_rows_stands(tmp_path: Path) -> None:
    table = _table(tmp_path, {"x": _many(lambda i: f"a {i % 5}"), "y": _many(lambda i: i % 2)})
    found = _guess(table, categories=["x"], epochs=3, val="held.csv", key="x")
    assert found.tree["epochs"] == 3
    assert found.tree["data"] == {"train": table, "val": "held.csv", "key": "x"}
    assert not {"epochs", "data.val"} & set(found.reasons)
    assert found.tree["optim"]["warmup_steps"] == 3  # of 27 steps


def test_one_target_stops_by_its_figure_and_several_by_their_loss(tmp_path: Path) -> None:
    columns = {"x": _many(lambda i: f"a {i % 5}"), "y": _many(lambda i: i % 2), "z": _many(lambda i: i / 2)}
    table = _table(tmp_path, columns)
    metrics = [
        _guess(table, categories=["x"], targets=names).tree["stop"]["metric"] for names in (["y"], ["z"], ["y", "z"])
    ]
    assert metrics == ["y/accuracy", "z/r2", "loss"]


def test_shards_are_tables_with_their_pictures_beside_them(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for number in range(20):
        members += [(f"{number}.json", json.dumps({"y": number % 2}).encode()), (f"{number}.png", encoded(picture(0)))]
    found = _guess(str(write_tar(tmp_path / "00000.tar", members)), image="photo")
    assert found.tree["inputs"] == {"photo": {"type": "image"}}


@pytest.fixture
def found(tmp_path: Path) -> Guess:
    columns = {
        "x": _many(lambda i: f"a {i}"),
        "price": _many(lambda i: math.exp(i / 20)),
        "tags": _many(lambda i: i % 3),
    }
    return _guess(_table(tmp_path, columns), text=["x"], targets=["price", "tags"])


def test_the_file_has_a_reason_beside_each_guess(found: Guess) -> None:
    text = guessed_text(found)
    assert read_yaml(text) == found.tree
    for key, reason in found.reasons.items():
        assert f"{key.rpartition('.')[2]}:" in next(line for line in text.splitlines() if f"# {reason}" in line)
    assert "    transform: log\n" in text


def test_what_is_overridden_has_no_reason(found: Guess) -> None:
    changed = with_overrides(found, ["targets.price.transform=none", "epochs=3", "head.hidden=[]"])
    assert at(changed.tree, "targets.price.transform") == "none"
    assert at(changed.tree, "head.hidden") == []
    assert set(found.reasons) - set(changed.reasons) == {"targets.price", "epochs"}
    assert at(found.tree, "targets.price.transform") == "log"
    with pytest.raises(InputError, match="'epochs': an override is key=value"):
        with_overrides(found, ["epochs"])


def test_a_name_that_looks_like_a_key_spoils_nothing(found: Guess) -> None:
    tree = found.tree | {"run_dir": "a\nepochs: 3\n"}
    assert read_yaml(guessed_text(Guess(tree, found.reasons))) == tree


def test_the_run_of_another_command_is_left_as_it_is(found: Guess, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("job: pretrain\n")
    with pytest.raises(InputError, match=r"--out .* holds a run that clipx fit did not begin; choose another"):
        settle(guessed_text(found), folder)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_the_file_is_found_again_and_no_other_is_replaced(found: Guess, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", guessed_text(found)
    assert settle(text, folder) == folder / FILE
    settle("# A config that `clipx fit` guessed\nepochs: 3\n", folder)  # nothing was trained yet
    settle(text, folder)
    (folder / "config.yaml").write_text("")
    settle(text, folder)
    with pytest.raises(InputError, match=r"fit.yaml is of another fit \('epochs: .* there, 'epochs: 3' now\); go on"):
        settle("\n".join("epochs: 3" if line.startswith("epochs") else line for line in text.splitlines()), folder)
    assert (folder / FILE).read_text() == text
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", FILE]
    (folder / FILE).write_text("epochs: 3\n")
    with pytest.raises(InputError, match="is there, and clipx fit did not write it"):
        settle(text, folder)
