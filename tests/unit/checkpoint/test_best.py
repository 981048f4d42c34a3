"""The best step of a run and the end of its patience, from result files as evaluations write them."""

import json
from pathlib import Path

import pytest

from clipx.checkpoint.best import (
    Score,
    StopRule,
    best_first,
    read_result,
    read_scores,
    reason_to_stop,
    result_name,
    standing,
)
from clipx.storage.folders import folder_at

RULE = StopRule("val", "category/accuracy", patience=2)


def write(run_dir: Path, step: int, *, name: str = "val", **figures: object) -> None:
    folder = run_dir / "eval"
    folder.mkdir(exist_ok=True)
    content = {"step": step, "name": name, **figures, "intervals": {}}
    (folder / result_name(name, step)).write_text(json.dumps(content))


def scores(*values: float | None) -> list[Score]:
    """Of steps 10, 20, ..."""
    return [Score(10 * number, value) for number, value in enumerate(values, 1)]


def test_scores_are_those_of_one_evaluation_in_the_order_of_steps(tmp_path: Path) -> None:
    assert read_scores(folder_at(tmp_path), RULE) == []
    accuracies = {200: 0.5, 30: 0.25, 100_000_000: 1}
    for step, value in accuracies.items():
        write(tmp_path, step, **{"category/accuracy": value, "loss": 9.0})
    write(tmp_path, 40, loss=1.0)
    write(tmp_path, 50, **{"category/accuracy": float("nan")})
    write(tmp_path, 60, **{"category/accuracy": True})
    write(tmp_path, 70, name="val-2", **{"category/accuracy": 0.9})
    for name, text in (("val-00000080.json", "{torn"), ("val-00000090.json", '{"name": "val", "step": 1}')):
        (tmp_path / "eval" / name).write_text(text)
    found = read_scores(folder_at(tmp_path), RULE)
    assert found == [(30, 0.25), (40, None), (50, None), (60, None), (200, 0.5), (100_000_000, 1.0)]
    assert read_scores(folder_at(tmp_path), RULE, until=200) == found[:-1]


def test_what_measured_another_thing_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 10, loss=1.0, measured="in batches of 24")
    write(tmp_path, 20, loss=2.0, measured="in batches of 96")
    write(tmp_path, 30, loss=3.0)  # of an earlier version
    rule = StopRule("val", "loss", patience=2, measured="in batches of 96")
    assert read_scores(folder_at(tmp_path), rule) == [(20, 2.0), (30, 3.0)]


def test_what_came_before_an_average_says_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path, 10, loss=1.0)
    write(tmp_path, 20, loss=1.0, ema_loss=float("nan"))
    assert read_scores(folder_at(tmp_path), StopRule("val", "ema_loss", patience=2)) == [(20, None)]


def test_what_is_no_result_is_not_opened(tmp_path: Path) -> None:
    assert read_result(folder_at(tmp_path), "val-1.json") is None
    assert read_result(folder_at(tmp_path), "notes.json") is None


def test_the_best_is_the_highest_or_the_lowest_and_the_earliest_of_equal_ones() -> None:
    found = scores(0.5, None, 0.75, 0.75, 0.25)
    assert best_first(found, RULE) == [30, 40, 10, 50]
    assert best_first(found, StopRule("val", "price/mae_without_text", 2)) == [50, 10, 30, 40]
    assert best_first(scores(None), RULE) == []


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ((), False),
        ((0.5,), False),
        ((0.5, 0.5), False),
        ((0.5, 0.5, 0.5), True),  # equal is no better
        ((0.5, 0.4, 0.6, 0.5), False),
        ((0.5, 0.4, 0.6, 0.5, 0.59), True),
        ((0.5, 0.4, 0.45), True),  # better than the one before is not better than the best
        ((0.5, None, None), True),
        ((None, None), True),
        ((None, 0.1, None), False),
    ],
)
def test_patience_ends_with_evaluations_in_a_row_that_are_no_better(
    values: tuple[float | None, ...], stops: bool
) -> None:
    assert (reason_to_stop(scores(*values), RULE) is not None) == stops


def test_the_reason_names_figure_value_and_step() -> None:
    assert reason_to_stop(scores(0.25, 0.5, 0.5, 0.125), RULE) == (
        "stop: category/accuracy was no better than 0.5 of step 20 in 2 evaluations (patience 2)"
    )
    assert reason_to_stop(scores(None, None), RULE) == (
        "stop: category/accuracy was not defined in 2 evaluations (patience 2)"
    )


def test_how_the_run_stands_is_said_at_each_evaluation() -> None:
    assert standing(scores(0.25, 0.5), RULE) == "category/accuracy 0.5 is the best so far"
    assert standing(scores(0.5, 0.25), RULE) == (
        "category/accuracy was no better than 0.5 of step 10 in 1 evaluation (patience 2)"
    )


def test_a_decision_does_not_depend_on_what_came_after_it() -> None:
    values = (0.1, 0.3, 0.2, 0.4, 0.4, 0.39, 0.5)
    ends = [reason_to_stop(scores(*values[:count]), RULE) is not None for count in range(len(values))]
    assert ends == [False] * 6 + [True]
