"""Numbers and choices that a person gives are refused in one line, before a model is loaded."""

from pathlib import Path

import pytest

from clipx.average.options import AverageOptions, read_alphas, read_weights
from clipx.errors import InputError

A, B, START, SET = Path("a"), Path("b"), Path("start"), Path("set")


def test_steps_are_exact_decimals_up_to_the_last() -> None:
    assert read_alphas("0,0.1,...,1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert read_alphas("1, 0.5, …, -0.5") == (1.0, 0.5, 0.0, -0.5)
    assert read_alphas("0,0.25,0.5,...,1,0.25") == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert read_alphas("0.5") == (0.5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,a,1", "--alphas: 'a' is no number"),
        ("", "--alphas: '' is no number"),
        ("...,1", "stands between two numbers and the last"),
        ("0,...,1", "stands between two numbers and the last"),
        ("0,0.1,...", "stands between two numbers and the last"),
        ("0,0.3,...,1", "steps of 0.3 do not come from 0.3 to 1"),
        ("0,0.1,...,-1", "steps of 0.1 do not come from 0.1 to -1"),
        ("0,0,...,1", "steps of 0 do not come from 0 to 1"),
        ("0,nan,...,1", "no steps lead to what is no number"),
        ("0,1e-9,...,1", "999999999 numbers; give at most 1,000"),
    ],
)
def test_steps_that_lead_nowhere_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_alphas(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_numbers() -> None:
    assert read_weights("1, 2,.5") == (1.0, 2.0, 0.5)
    with pytest.raises(InputError, match="--weights: 'x' is no number"):
        read_weights("1,x")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"models": (A,)}, "1 MODEL has no average; give several, or one and --with START"),
        ({"models": (A,), "greedy": True, "on": (SET,)}, "1 MODEL has nothing to choose from"),
        ({"weights": (1.0,)}, "--weights 1: 1 numbers for 2 models"),
        ({"weights": (1.0, -1.0)}, "--weights 1,-1: they must be numbers of at least 0, and not all 0"),
        ({"weights": (0.0, 0.0)}, "--weights 0,0: they must be"),
        ({"weights": (1.0, float("nan"))}, "--weights 1,nan: they must be"),
        ({"weights": (1.0, float("inf"))}, "--weights 1,inf: they must be"),
        ({"weights": (1.0, 2.0), "greedy": True, "on": (SET,)}, "--greedy gives all models that it takes in one"),
        ({"start": START}, "--with says where to start, not how far to go"),
        ({"alphas": (0.5,)}, "name it by --with START"),
        ({"start": START, "alphas": (1.5,)}, "alpha 1.5 lies outside 0 to 1; to go beyond"),
        ({"start": START, "alphas": (-0.01,)}, "alpha -0.01 lies outside 0 to 1"),
        ({"start": START, "alphas": (float("nan"),), "extrapolate": True}, "alpha nan is no number"),
        ({"start": START, "alphas": (0.0, 1.0)}, "--alphas needs something to choose by"),
        ({"start": START, "alphas": (0.5,), "greedy": True, "on": (SET,)}, "give one of the two"),
        ({"greedy": True}, "--greedy needs something to choose by"),
        ({"on": (SET,)}, "--on chooses, among several"),
        (
            {"start": START, "alphas": (0.5,), "on": (SET,)},
            "--on chooses, among several",
        ),
    ],
)
def test_choices_that_say_nothing_are_refused(choices: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        AverageOptions(**({"models": (A, B)} | choices))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_beyond_the_ends_by_consent() -> None:
    assert AverageOptions(models=(A,), start=START, alphas=(-0.5, 1.5), extrapolate=True, on=(SET,)).extrapolate
