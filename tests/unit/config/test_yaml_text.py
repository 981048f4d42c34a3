"""Scalars by the rules of YAML 1.2, read and written."""

from typing import Any

import pytest
import yaml

from clipx.config.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-1E+3", -1e3),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("'1e-3'", "1e-3"),
        ("{1: a, null: b}", {"1": "a", "null": "b"}),
        ("{a: &x {b: 1}, c: {<<: *x, b: 2}}", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_reads(text: str, value: Any) -> None:
    result = read_yaml(text)
    assert result == value
    assert type(result) is type(value)


def test_a_key_twice_is_an_error_at_any_depth() -> None:
    with pytest.raises(yaml.YAMLError, match="'b' stands twice"):
        read_yaml("a: [{b: 1, b: 2}]")


def test_writes_in_order_without_anchors_and_with_numbers_on_one_line() -> None:
    shared = ["x", "y"]
    text = write_yaml({"b": shared, "a": shared, "n": (1, 2.5), "long": "w " * 100 + "w", "none": None, "e": []})
    assert text == f"b:\n- x\n- y\na:\n- x\n- y\nn: [1, 2.5]\nlong: {'w ' * 100}w\nnone: null\ne: []\n"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "the alias 'a[0-9]' repeats too much"),
        (f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 1000)}]", "the alias 'a' repeats too much"),
        ("a: &a [*a]", "the alias 'a' repeats too much"),
        ("a: &a {<<: *a}", "the alias 'a' repeats too much"),
        ("[" * 5000 + "]" * 5000, "more than 64 values in each other"),
        ("{a: " * 5000 + "}" * 5000, "more than 64 values in each other"),
        ("9" * 5000, "a number of too many digits"),
    ],
    ids=["bomb", "long text", "itself", "merged with itself", "lists", "mappings", "digits"],
)
def test_what_grows_beyond_all_need_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(yaml.YAMLError, match=reason):
        read_yaml(text)


def test_length_and_aliases_of_what_people_write_have_no_limit() -> None:
    assert len(read_yaml(f"[{', '.join(['shards/00000.tar'] * 5000)}]")) == 5000
    stages = read_yaml("\n".join(["a: &a {x: 1, y: [2, 3]}", *(f"b{n}: {{<<: *a, z: {n}}}" for n in range(500))]))
    assert stages["b499"] == {"x": 1, "y": [2, 3], "z": 499}
