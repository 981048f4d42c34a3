"""What cells mean: the same value means the same however a table's format wrote it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipx.data.fit_cells import CellError, label, labels, number, scaled, text, transformed


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (3, 3.0),
        (2.5, 2.5),
        ("12.5", 12.5),
        ("1e3", 1000.0),
        (" -7 ", -7.0),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("\ufeff4", 4.0),
    ],
)
def test_numbers(cell, expected):
    assert number(cell) == expected


@pytest.mark.parametrize("cell", [None, "", " \t", float("nan"), "NaN"])
def test_absent_numbers(cell):
    assert number(cell) is None


@pytest.mark.parametrize("cell", ["n/a", "1,5", "1 000", "0x1", "1_0", "٣", "inf", float("inf"), True, [1], {}, 10**31])
def test_what_is_no_number(cell):
    with pytest.raises(CellError):
        number(cell)


@given(st.floats(-1e29, 1e29))
def test_a_number_and_its_text_are_one(value):
    assert number(repr(value)) == number(value) == value


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([3, 3.0, "3", " 3 ", "3.0"], "3"),
        ([True, "true", "True", " TRUE "], "true"),
        ([False, "False"], "false"),
        (["a b", " a b\n"], "a b"),
        ([2.5, "2.5"], "2.5"),
    ],
)
def test_equal_labels(cells, expected):
    assert {label(cell) for cell in cells} == {expected}


def test_labels_that_look_alike_stay_apart():
    assert len({label(cell) for cell in ["007", 7, "7.50", 7.5, "A", "a"]}) == 6


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a; b;; a", ["a", "b"]),
        (["a", None, "b"], ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("[1, 2]", ["1", "2"]),
        ("[]", []),
        ([], []),
        (5, ["5"]),
        ("[not a list", ["[not a list"]),
        (None, None),
        (" ", None),
    ],
)
def test_several_labels(cell, expected):
    assert labels(cell, separator=";") == expected


def test_a_list_of_lists_is_no_list_of_labels():
    with pytest.raises(CellError, match="no single label"):
        labels([["a"]], separator=";")


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(CellError) as caught:
        number("x" * 1000)
    assert len(str(caught.value)) < 100


def test_texts_of_numbers_are_as_they_stood_in_the_table():
    assert [text(cell) for cell in (3, 3.0, 0.5, True, " x ")] == ["3", "3.0", "0.5", "true", "x"]


def test_logarithms_and_scales():
    assert transformed(math.e, "log") == 1
    assert transformed(-2, "none") == -2
    with pytest.raises(CellError, match="not above 0"):
        transformed(-2, "log")
    assert scaled(5, mean=1, std=2) == 2
    with pytest.raises(CellError, match="standard deviations away"):
        scaled(1e30, mean=0, std=1e-9)
