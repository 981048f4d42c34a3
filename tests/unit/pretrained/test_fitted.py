"""What a fitted model says of rows that a program gives it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_rows import INPUTS, TARGETS, row_config, row_model
from tiny_clip import encoded, picture

from clipx.errors import InputError
from clipx.pretrained import Fitted


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return row_model()


def _row(number: int = 0) -> dict[str, Any]:
    return {"photo": picture(number), "title": f"a thing {number}", "brand": "b", "weight": 3.5, "shop": "north"}


def _values(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "present"}


def test_a_row_has_a_value_for_each_target(fitted: Fitted) -> None:
    (found,) = fitted.predict(_row())
    assert list(found) == ["shape", "shape_probability", "price", "tags", "present"]
    assert found["shape"] in ("disc", "ring", "star")
    assert isinstance(found["price"], float)
    assert found["price"] > 0
    assert found["present"] == ["photo", "title", "weight", "shop"]


def test_rows_keep_their_order_and_do_not_change_each_other(fitted: Fitted) -> None:
    rows = [_row(number) for number in range(5)]
    together = fitted.predict(rows, batch_size=3)
    alone = [fitted.predict(row)[0] for row in rows]
    assert len({row["price"] for row in together}) == 5
    for one, other in zip(together, alone, strict=True):
        assert one["shape"] == other["shape"]
        assert one["price"] == pytest.approx(other["price"], rel=1e-5)
    backwards = fitted.predict(rows[::-1], batch_size=5)[::-1]
    assert [row["price"] for row in backwards] == pytest.approx([row["price"] for row in together], rel=1e-5)


def test_all_forms_of_a_picture_give_the_same(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    forms = [picture(1), encoded(picture(1)), tmp_path / "a.png", str(tmp_path / "a.png")]
    found = fitted.predict([_row() | {"photo": form} for form in forms])
    assert all(row == found[0] for row in found)
    assert found[0] != fitted.predict(_row())[0]


@pytest.mark.parametrize("mode", ["RGBA", "L", "1", "P", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_taken(fitted: Fitted, mode: str) -> None:
    (found,) = fitted.predict(_row() | {"photo": picture(0).convert("L").convert(mode)})
    assert "problem" not in found


@pytest.mark.parametrize("nothing", [None, "", "  ", math.nan, np.float64("nan"), b"", "absent.png"])
def test_what_is_absent_is_not_among_the_inputs(fitted: Fitted, nothing: object) -> None:
    found, _ = fitted.predict([_row() | {"photo": nothing}, _row() | {"photo": __file__}])  # a file that is there
    assert found["present"] == ["title", "weight", "shop"]
    assert _values(found) == _values(fitted.predict({**_row(), "photo": None})[0])


def test_texts_of_columns_are_joined_and_blank_ones_passed_over(fitted: Fitted) -> None:
    rows: list[dict[str, Any]] = [
        {**_row(), "title": title, "brand": brand} for title, brand in (("a", "b"), ("a, b", ""), ("", ""))
    ]
    joined, whole, without = fitted.predict(rows)
    assert joined["price"] == pytest.approx(whole["price"])
    assert without["present"] == ["photo", "weight", "shop"]


def test_a_category_that_training_has_not_seen_is_absent(fitted: Fitted) -> None:
    found = fitted.predict([_row() | {"shop": "east"}, _row() | {"shop": None}])
    assert found[0] == found[1]
    assert found[0]["present"] == ["photo", "title", "weight"]


def test_scalars_of_numpy_are_numbers_and_words(fitted: Fitted) -> None:
    plain, typed = fitted.predict([_row(), _row() | {"weight": np.float32(3.5), "shop": np.str_("north")}])
    assert plain == typed


def test_a_row_without_any_input_has_no_values_and_says_so(fitted: Fitted) -> None:
    empty = dict.fromkeys(_row())
    found = fitted.predict([_row(), empty, _row()])
    assert found[1] == {
        "shape": None,
        "shape_probability": None,
        "price": None,
        "tags": None,
        "present": [],
        "problem": "none of the inputs is there (photo, title, weight, shop)",
    }
    assert found[0] == found[2]
    assert "problem" not in found[0]


def test_a_cell_that_is_no_number_is_named(fitted: Fitted) -> None:
    found = fitted.predict([_row(), _row() | {"weight": "heavy"}])
    assert found[1]["price"] is None
    assert found[1]["problem"] == "column 'weight': 'heavy' is no number"


def test_a_broken_picture_is_no_absent_one(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    found = fitted.predict([_row() | {"photo": broken} for broken in (tmp_path / "a.png", tmp_path, 3)])
    assert [row["price"] for row in found] == [None] * 3
    assert "picture of 10 bytes" in str(found[0]["problem"])
    assert "unreadable picture" in str(found[1]["problem"])
    assert "3 is no path, no bytes and no picture" in str(found[2]["problem"])


def test_a_picture_of_another_kind_is_named_in_a_few_words(fitted: Fitted) -> None:
    (found,) = fitted.predict(_row() | {"photo": np.zeros((64, 64, 3), np.uint8)})
    assert found["problem"] == (
        "unreadable picture (a value of type ndarray is no path, no bytes and no picture of Pillow's)"
    )


def test_paths_of_pictures_that_begin_elsewhere_are_noticed(fitted: Fitted) -> None:
    rows = [_row() | {"photo": name} for name in ("photos/a.png", "photos/b.png")]
    with pytest.raises(InputError, match=r"rows: not one of the pictures .* is there, as photos/a.png; .*absent=True"):
        fitted.predict(rows)
    assert [row["present"] for row in fitted.predict(rows, absent=True)] == [["title", "weight", "shop"]] * 2
    assert fitted.predict([*rows, _row()])[0]["present"] == ["title", "weight", "shop"]  # this one has its picture


def test_a_column_that_no_row_has_is_said_or_absent(fitted: Fitted) -> None:
    row = {name: value for name, value in _row().items() if name not in ("weight", "photo")}
    with pytest.raises(InputError, match=r"rows: no columns photo, weight, from which .*absent=True"):
        fitted.predict([row, row])
    found = fitted.predict([row], absent=True)
    assert found[0]["present"] == ["title", "shop"]
    beside = fitted.predict([row, _row()])[0]  # a row may lack what others have
    assert beside["price"] == pytest.approx(found[0]["price"], rel=1e-5)
    assert beside["present"] == found[0]["present"]


def test_probabilities_of_all_classes_are_there_if_asked_for(fitted: Fitted) -> None:
    (found,) = fitted.predict(_row(), probabilities=True)
    shapes, tags = found["shape_probabilities"], found["tags_probabilities"]
    assert isinstance(shapes, dict)
    assert isinstance(tags, dict)
    assert list(shapes) == ["disc", "ring", "star"]
    assert sum(shapes.values()) == pytest.approx(1)
    assert max(shapes, key=lambda name: shapes[name]) == found["shape"]
    assert [name for name, value in tags.items() if value >= 0.5] == found["tags"]


class _Frame:
    """What predict uses of a DataFrame."""

    columns = ("title",)

    def to_dict(self, kind: str) -> list[dict[str, object]]:
        assert kind == "records"
        return [{**_row(), "weight": math.nan}]


def test_a_data_frame_is_rows(fitted: Fitted) -> None:
    assert fitted.predict(_Frame()) == fitted.predict({**_row(), "weight": None})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, "rows are mappings from column to value, or a DataFrame, not int"),
        ("a.csv", "rows are mappings from column to value, or a DataFrame, not str"),
        ([{"title": "a"}, ["a"]], "row 1 is a list; a row is a mapping"),
    ],
)
def test_what_is_no_row_is_refused(fitted: Fitted, rows: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted.predict(rows)


def test_no_rows_have_no_predictions(fitted: Fitted) -> None:
    assert fitted.predict([]) == []


def test_its_towers_embed_and_classify(fitted: Fitted) -> None:
    assert fitted.encode_image(picture(0)).shape == (1, 24)
    (classes,) = fitted.classify(picture(0), ["disc", "ring"])
    assert set(classes) == {"disc", "ring"}


@pytest.mark.parametrize("kept", [("photo",), ("title",), ("weight", "shop"), ("shop",)])
def test_a_model_may_have_inputs_of_one_kind(kept: tuple[str, ...]) -> None:
    config = row_config(inputs={name: INPUTS[name] for name in kept}, fusion="concat")
    (found,) = row_model(config).predict(_row())
    assert found["present"] == list(kept)


def test_training_mode_changes_nothing_and_comes_back(fitted: Fitted) -> None:
    before = fitted.predict(_row())
    fitted.model.train()
    try:
        assert fitted.predict(_row()) == before
        assert fitted.model.training
    finally:
        fitted.model.eval()


def test_numbers_are_in_the_units_of_the_table() -> None:
    targets = {"price": {"type": "number", "mean": 0.0, "std": 1.0}}
    config = row_config(targets=targets)
    model = row_model(config)
    scaled = model.predict(_row())[0]["price"]
    assert isinstance(scaled, float)
    for changes, expected in (
        ({"mean": 7.0, "std": 3.0}, scaled * 3 + 7),
        ({"mean": 1.0, "std": 2.0, "transform": "log"}, math.exp(scaled * 2 + 1)),
    ):
        changed = replace(config, targets={"price": {**targets["price"], **changes}})
        found = Fitted(model.model, changed, tokenizer=model.tokenizer).predict(_row())
        assert found[0]["price"] == pytest.approx(expected, rel=1e-6)


def test_raw_outputs_of_rows_that_cannot_be_read_are_not_computed(fitted: Fitted) -> None:
    found = fitted.predict([dict.fromkeys(_row())] * 3, batch_size=2)
    assert [row["price"] for row in found] == [None] * 3
    assert torch.is_grad_enabled()


def test_targets_in_rows_are_not_read(fitted: Fitted) -> None:
    assert set(TARGETS) == {"shape", "price", "tags"}
    assert fitted.predict(_row() | {"price": "unknown", "shape": ["a"]}) == fitted.predict(_row())
