"""What the training rows say stands in the config: the same for rows in any order; and what no model can learn from."""

import json
import logging
import math

import pytest
from fit_tables import fit_config, sample, write_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipx.data.index.shard_index import build_index
from clipx.errors import InputError
from clipx.fitting.count import count_rows
from clipx.fitting.facts import sorted_labels, warn_of_unknown, with_facts

ROWS = [
    {"title": "a cup", "weight": "2", "shop": "b", "kind": "cup", "price": 1.0, "tags": "new;red"},
    {"title": "a hat", "weight": 4, "kind": "hat", "price": math.e, "tags": "red"},
    {"title": "a toy", "weight": 6.0, "shop": "a", "kind": "hat", "price": math.e**2, "tags": []},
    {"shop": "b", "kind": "hat"},
]
INPUTS = {"title": "text", "weight": "number", "shop": "category"}
TARGETS = {"kind": "class", "price": {"type": "number", "transform": "log"}, "tags": "labels"}


@pytest.fixture
def count(tmp_path):
    """Counts rows, given as records or as samples, in shards of two."""

    def count(config, rows, name="shards"):
        samples = [row if "json" in row else sample(row) for row in rows]
        shards = [samples[first : first + 2] for first in range(0, len(samples), 2)]
        return count_rows(build_index(write_samples(tmp_path / name, shards)), config)

    return count


@pytest.fixture
def facts(count):
    """The config with the facts of rows."""

    def facts(rows, inputs=INPUTS, targets=TARGETS):
        config = fit_config(inputs, targets)
        return with_facts(config, count(config, rows))

    return facts


def test_facts_of_a_table(facts):
    config = facts(ROWS)
    weight, shop = config.inputs["weight"], config.inputs["shop"]
    assert (weight.mean, weight.std) == (4.0, pytest.approx(math.sqrt(8 / 3)))
    assert shop.classes == ("a", "b")
    kind, price, tags = (config.targets[name] for name in TARGETS)
    assert (kind.classes, kind.counts) == (("cup", "hat"), (1, 3))
    assert (price.mean, price.std) == (pytest.approx(1.0), pytest.approx(math.sqrt(2 / 3)))
    assert (tags.classes, tags.counts, tags.num_rows) == (("new", "red"), (1, 2), 3)


def test_what_is_there_is_counted(count):
    rows = [*map(sample, ROWS), sample({"price": 1}, picture=2), {"json": b"{"}, sample({"kind": "cup"})]
    counts = count(fit_config(INPUTS | {"photo": "image"}, TARGETS), rows)
    assert (counts.num_rows, counts.num_pictures, counts.num_texts) == (7, 1, 3)
    assert (counts.num_bad, counts.num_empty) == (1, 1)
    assert counts.cells["targets.price"].present == 4
    assert {"title", "weight", "shop", "kind", "price", "tags"} == set(counts.columns)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.sampled_from("abcde"), st.floats(1e-3, 1e9)), min_size=5, max_size=12),
    st.randoms(use_true_random=False),
)
def test_rows_in_any_order_have_the_same_facts(tmp_path_factory, rows, random):
    records = [{"weight": w, "shop": s, "kind": s, "price": p, "tags": [s], "title": s} for w, s, p in rows]
    records += [ROWS[0], ROWS[1], ROWS[2]]
    shuffled = random.sample(records, len(records))
    config, found = fit_config(INPUTS, TARGETS), []
    for ordered in (records, shuffled):
        shards = write_samples(tmp_path_factory.mktemp("shards"), [[sample(row) for row in ordered]])
        found.append(with_facts(config, count_rows(build_index(shards), config)))
    assert found[0] == found[1]


def test_labels_stand_in_the_order_in_which_people_count():
    labels = ["size 10", "10", "size 2", "-3", "2.5", "2", "A", "b", "a"]
    assert sorted_labels(labels) == ["-3", "2", "2.5", "10", "A", "a", "b", "size 2", "size 10"]


@pytest.mark.parametrize(
    ("change", "targets", "message"),
    [
        ({"kind": "cup"}, {"kind": "class"}, "targets.kind: all 4 .* are 'cup'; a target needs rows that differ"),
        ({"price": 0.1}, {"price": "number"}, "targets.price: all 4 .* are 0.1; a target needs rows that differ"),
        ({"tags": "x;y"}, {"tags": "labels"}, "targets.tags: all 4 .* are 'x; y'"),
        ({"tags": []}, {"tags": "labels"}, "targets.tags: all 4 .* are without labels"),
        ({}, {"prise": "number"}, "targets.prise: none of the 4 .* column 'prise'; the nearest is 'price'"),
        ({"kind": " "}, {"kind": "class"}, "targets.kind: none of the 4 training rows has a cell in column 'kind'"),
        (
            {},
            {"kind": {"type": "class", "classes": ["hat", "toy"]}},
            r"targets.kind.classes lacks 1 .*: cup \(1\)",
        ),
        (
            {},
            {"kind": {"type": "class", "classes": ["hat", "cup", "toy"]}},
            "targets.kind.classes has 1 classes that no training row has: toy",
        ),
    ],
)
def test_targets_that_cannot_be_learned(facts, change, targets, message):
    with pytest.raises(InputError, match=message):
        facts([row | change for row in ROWS], targets=targets)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"photo": "image"}, "inputs.photo: none of the 4 training rows has a picture"),
        ({"titel": "text"}, "inputs.titel: none of the 4 .* column 'titel'; the nearest is 'title'"),
        ({"mass": {"type": "number", "column": "wait"}}, "inputs.mass: none .* column 'wait'; the nearest is 'weight'"),
    ],
)
def test_inputs_that_no_row_has(facts, inputs, message):
    with pytest.raises(InputError, match=message):
        facts(ROWS, inputs=inputs)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"price": "n/a"}, "row 000000002 of .*00001.tar: column 'price': 'n/a' is no number; correct the cell"),
        ({"weight": "2 kg"}, "row 000000002 .*column 'weight': '2 kg' is no number"),
        ({"price": 0}, "row 000000002 .*column 'price': 0.0 is not above 0"),
        ({"kind": ["a"]}, "row 000000002 .*column 'kind': .* is no single label"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_with_its_row(facts, cell, message):
    with pytest.raises(InputError, match=message):
        facts([*ROWS[:2], ROWS[2] | cell, ROWS[3]])


def test_a_class_for_each_row_is_free_text_but_not_in_a_table_of_a_few_rows(facts):
    rows = [{"title": f"cup {number}", "kind": f"cup {number}"} for number in range(20)]
    few = facts(rows[:19], inputs={"title": "text"}, targets={"kind": "class"})
    assert len(few.targets["kind"].classes) == 19
    with pytest.raises(InputError, match=r"each of the 20 training rows .* has a class of its own"):
        facts(rows, inputs={"title": "text"}, targets={"kind": "class"})


def test_classes_that_the_config_names_keep_their_order(facts):
    config = facts(ROWS, targets={"kind": {"type": "class", "classes": ["hat", "cup"]}})
    assert (config.targets["kind"].classes, config.targets["kind"].counts) == (("hat", "cup"), (3, 1))


def test_an_input_that_says_nothing_is_told(facts, caplog):
    with caplog.at_level(logging.WARNING):
        config = facts([row | {"weight": 0.1} for row in ROWS])
    assert (config.inputs["weight"].mean, config.inputs["weight"].std) == (0.1, 1.0)
    assert "inputs.weight: all training rows that have it have 0.1" in caplog.text


def test_labels_of_held_out_rows_that_training_did_not_have_are_named_and_counted(facts, count, caplog):
    config = facts(ROWS)
    held_out = [{"kind": f"sock {number}"} for number in range(11)] + [{"kind": "sock 0", "tags": "red;blue"}]
    with caplog.at_level(logging.WARNING):
        warn_of_unknown(config, count(config, [*ROWS, *held_out], "val"))
    (kind, tags) = [record.getMessage() for record in caplog.records]
    assert "targets.kind: 11 of the validation rows' labels" in kind
    assert "sock 0 (2), sock 1 (1)" in kind
    assert "and 1 more" in kind
    assert "targets.tags: 1 of" in tags
    assert "blue (1)" in tags


def test_a_member_that_is_no_record_is_a_bad_sample_not_an_error(count):
    counts = count(fit_config(INPUTS, TARGETS), [{"json": json.dumps([1]).encode()}, sample(ROWS[0])])
    assert (counts.num_bad, counts.cells["targets.kind"].present) == (1, 1)
