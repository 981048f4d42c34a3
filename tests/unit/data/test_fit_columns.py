"""From records to columns: presence, scaled numbers, places of classes, targets, and what makes a sample bad."""

import json

import numpy as np
import pytest
from fit_tables import fit_config, sample

from clipx.data.columns import RawSample
from clipx.data.decode import UndecodableError
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.sample_refs import SampleName, SampleRef

INPUTS = {
    "photo": "image",
    "title": {"type": "text", "columns": ["title", "brand"]},
    "weight": {"type": "number", "mean": 10, "std": 2},
    "shop": {"type": "category", "classes": ["a", "b"]},
}
TARGETS = {
    "kind": {"type": "class", "classes": ["cup", "hat", "toy"], "counts": [1, 1, 1]},
    "price": {"type": "number", "transform": "log", "mean": 1.0, "std": 0.5},
    "tags": {"type": "labels", "classes": ["new", "old", "red"], "counts": [1, 1, 1]},
}
ALL = {"title": "cup", "brand": "Ace", "weight": 12, "shop": "b", "kind": "hat", "price": 7.0, "tags": "red; new"}


def raw(members, *, epoch=0, sample_id=0, columns=("title", "brand"), listed=()):
    """A sample as the reader of columns is given it."""
    text = JoinedText(columns).read(members, epoch=epoch, sample_id=sample_id)
    name = SampleName("s.tar", "0", (*members, *listed))
    return RawSample(members=members, texts=text.texts, ref=SampleRef(0, 0, 0, epoch, sample_id), name=lambda: name)


def read(record, *, picture=1, inputs=INPUTS, targets=TARGETS, training=False, **where):
    config = fit_config(inputs, targets, **where.pop("config", {}))
    return FitColumns(config, training=training).read(raw(sample(record, picture=picture), **where))


def test_a_whole_row_becomes_all_columns():
    columns = read(ALL)
    assert columns["presence_BM"].tolist() == [[1, 1, 1]]
    assert columns["numbers_BK"].tolist() == [[1.0]]
    assert columns["categories_BC"].tolist() == [[1]]
    kind, price, *tags = columns["targets_BO"][0].tolist()
    assert kind == 1
    assert price == pytest.approx((np.log(7) - 1) / 0.5)
    assert tags == [1, 0, 1]


def test_columns_are_what_they_promise():
    reader = FitColumns(fit_config(INPUTS, TARGETS), training=False)
    values = reader.read(raw(sample(ALL, picture=1)))
    assert values.keys() == reader.columns.keys()
    for name, spec in reader.columns.items():
        assert (values[name].dtype, values[name].shape) == (spec.dtype, (1, *spec.shape))


@pytest.mark.parametrize("blank", [None, "", "  ", "\u200b", float("nan")])
def test_what_is_blank_is_absent(blank):
    columns = read(dict.fromkeys(ALL, blank))
    assert columns["presence_BM"].tolist() == [[1, 0, 0]]
    assert np.isnan(columns["numbers_BK"]).all()
    assert columns["categories_BC"].tolist() == [[-1]]
    assert np.isnan(columns["targets_BO"]).all()


@pytest.mark.parametrize(
    ("given", "presence"),
    [
        ({"title": "cup"}, [0, 1, 0]),
        ({"brand": "Ace"}, [0, 1, 0]),
        ({"weight": 1}, [0, 0, 1]),
        ({"shop": "a"}, [0, 0, 1]),
    ],
)
def test_each_input_alone_is_a_sample(given, presence):
    assert read(given, picture=None)["presence_BM"].tolist() == [presence]


def test_a_picture_is_known_to_be_there_although_it_is_not_read():
    reader = FitColumns(fit_config(INPUTS, TARGETS), training=False)
    assert "png" not in reader.extensions
    members = sample({})
    assert reader.read(raw(members, listed=["webp"]))["presence_BM"].tolist() == [[1, 0, 0]]


def test_a_row_with_none_of_the_inputs_is_bad():
    with pytest.raises(UndecodableError, match="none of the inputs is there"):
        read({"kind": "hat", "shop": "none of the classes"}, picture=None)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"weight": "n/a"}, "column 'weight': 'n/a' is no number"),
        ({"weight": True}, "column 'weight': true is no number"),
        ({"weight": "1e999"}, "larger than 1e\\+30"),
        ({"price": 0}, "column 'price': 0.0 is not above 0"),
        ({"kind": ["hat", "cup"]}, "column 'kind': .* is no single label"),
        ({"title": {"en": "cup"}}, "column 'title': .* is no text"),
        ({"title": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_cell_that_cannot_be_read_makes_the_sample_bad(cell, message):
    with pytest.raises(UndecodableError, match=message):
        read(ALL | cell)


def test_a_record_that_is_no_object_makes_the_sample_bad():
    with pytest.raises(UndecodableError, match="not an object"):
        raw({"json": b"[1]"})


def test_classes_that_training_did_not_have_are_no_target_and_unknown_labels_none():
    targets = read(ALL | {"kind": "sock", "tags": ["red", "blue"]})["targets_BO"][0]
    assert np.isnan(targets[0])
    assert targets[2:].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("cell", "expected"), [("[]", [0, 0, 0]), ([], [0, 0, 0]), ('["old"]', [0, 1, 0]), (";", [0, 0, 0])]
)
def test_no_label_is_known_where_the_list_is_empty(cell, expected):
    assert read(ALL | {"tags": cell})["targets_BO"][0, 2:].tolist() == expected


def test_what_is_predicted_has_no_targets():
    reader = FitColumns(fit_config(INPUTS, TARGETS), training=False, targets=False)
    values = reader.read(raw(sample(ALL | {"kind": ["broken"]}, picture=1)))
    assert "targets_BO" not in reader.columns
    assert values.keys() == reader.columns.keys()


def test_captions_and_classes_of_other_shards_are_columns_too():
    config = fit_config({"txt": "text"}, {"cls": {"type": "class", "classes": ["3", "4"], "counts": [1, 1]}})
    members = {"txt": b"a cup", "cls": b"4"}
    reader = FitColumns(config, training=False)
    assert {"json", "cls"} <= reader.extensions
    values = reader.read(raw(members, columns=["txt"]))
    assert values["presence_BM"].tolist() == [[1]]
    assert values["targets_BO"].tolist() == [[1]]


def drawn(*, record=ALL, picture=1, training=True, seed=0, epoch=0, num=2000, inputs=INPUTS, p=0.1):
    """The presence of many samples."""
    config = fit_config(inputs, TARGETS, absent={"probability": p}, seed=seed)
    reader = FitColumns(config, training=training)
    members = sample(record, picture=picture)
    return np.concatenate([reader.read(raw(members, epoch=epoch, sample_id=i))["presence_BM"] for i in range(num)])


def test_presence_is_hidden_by_seed_epoch_and_sample_and_never_both():
    first = drawn()
    assert np.array_equal(first, drawn())
    assert not np.array_equal(first, drawn(seed=1))
    assert not np.array_equal(first, drawn(epoch=1))
    hidden = 1 - first
    assert hidden.sum(axis=1).max() == 1
    assert hidden[:, :2].mean(axis=0) == pytest.approx([0.1, 0.1], abs=0.03)
    assert hidden[:, 2].sum() == 0


def test_nothing_is_hidden_in_evaluation_or_where_it_is_the_only_input():
    assert drawn(training=False, num=100).all()
    alone = drawn(record={}, num=100, p=0.5)
    assert alone.tolist() == [[1, 0, 0]] * 100


def test_of_two_inputs_one_stays_for_the_largest_probability():
    presence = drawn(inputs={"photo": "image", "title": "text"}, p=0.5, num=200)
    assert presence.sum(axis=1).tolist() == [1] * 200


def test_texts_are_joined_in_the_order_of_the_columns_without_blank_ones():
    def text(record, *columns):
        return JoinedText(columns).read({"json": json.dumps(record).encode()}, epoch=0, sample_id=0).texts

    record = {"a": " x ", "b": "", "c": 4.5, "d": ["y", None, "z"], "e": 3}
    assert text(record, "c", "a", "b", "d", "e", "none") == ("4.5, x, y, z, 3",)
    assert text(record, "b", "none") == ("",)
    assert text(record) == ("",)
    assert JoinedText(["a"]).read({}, epoch=0, sample_id=0).texts == ("",)
