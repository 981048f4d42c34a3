"""Figures of predictions, beside scikit-learn's and textbook loops."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from clipx.evaluate.supervised_metrics import (
    area_under_roc,
    calibration_error,
    class_metrics,
    label_metrics,
    number_metrics,
)


def _classes(num_rows: int, num_classes: int, *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities with ties, and classes that they tell something of."""
    generator = np.random.default_rng(seed)
    class_N = generator.integers(num_classes, size=num_rows)
    parts_NK = generator.integers(1, 9, size=(num_rows, num_classes)) + 5 * (class_N[:, None] == np.arange(num_classes))
    return parts_NK / parts_NK.sum(axis=1, keepdims=True), class_N


def _loop_error(probability_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """Equation 3 of arXiv 1706.04599, bin by bin."""
    total = 0.0
    for number in range(15):
        inside_N = (probability_N > number / 15) & (probability_N <= (number + 1) / 15)
        if inside_N.any():
            total += inside_N.mean() * abs(right_N[inside_N].mean() - probability_N[inside_N].mean())
    return total


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_figures_of_classes_are_those_of_scikit_learn(num_classes: int) -> None:
    probability_NK, class_N = _classes(300, num_classes)
    predicted_N = probability_NK.argmax(axis=1)
    areas = (
        roc_auc_score(class_N, probability_NK[:, 1])
        if num_classes == 2
        else roc_auc_score(class_N, probability_NK, multi_class="ovr", average="macro")
    )
    assert class_metrics(probability_NK, class_N) == pytest.approx(
        {
            "accuracy": accuracy_score(class_N, predicted_N),
            "macro_f1": f1_score(class_N, predicted_N, average="macro"),
            "auroc": areas,
            "calibration_error": _loop_error(probability_NK.max(axis=1), predicted_N == class_N),
        },
        abs=1e-12,
    )


def test_classes_that_do_not_occur_are_no_part_of_a_mean() -> None:
    probability_NK, class_N = _classes(200, 6)
    rows = class_N < 4
    probability_NK, class_N = probability_NK[rows], class_N[rows]
    probability_NK[:, 5] = 0.0  # neither there nor predicted; class 4 is predicted now and then
    predicted_N = probability_NK.argmax(axis=1)
    assert set(predicted_N) == {0, 1, 2, 3, 4}
    found = class_metrics(probability_NK, class_N)
    areas = [roc_auc_score(class_N == k, probability_NK[:, k]) for k in range(4)]
    assert found["macro_f1"] == pytest.approx(f1_score(class_N, predicted_N, average="macro"), abs=1e-12)
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_a_figure_that_the_rows_do_not_define_is_left_out() -> None:
    probability_NK, _ = _classes(5, 3)
    assert class_metrics(probability_NK, np.ones(5, np.int64)).keys() == {"accuracy", "macro_f1", "calibration_error"}
    assert class_metrics(probability_NK[:0], np.zeros(0, np.int64)) == {}
    assert class_metrics(np.full((2, 3), np.nan), np.zeros(2, np.int64)) == {}
    assert number_metrics(np.full(3, 1.1), np.full(3, 0.1)) == {"mae": 1.0}
    assert number_metrics(np.array([np.nan]), np.array([2.0])) == number_metrics(np.zeros(0), np.zeros(0)) == {}
    assert label_metrics(np.full((4, 2), 0.3), np.zeros((4, 2), bool)).keys() == {"calibration_error"}
    assert label_metrics(np.zeros((0, 2)), np.zeros((0, 2), bool)) == {}
    assert label_metrics(np.full((1, 2), np.nan), np.zeros((1, 2), bool)) == {}


def test_figures_of_numbers_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    true_N = generator.lognormal(3, 1, size=100)
    predicted_N = true_N * generator.lognormal(0, 0.3, size=100)
    expected = {"mae": mean_absolute_error(true_N, predicted_N), "r2": r2_score(true_N, predicted_N)}
    assert number_metrics(predicted_N, true_N) == pytest.approx(expected, rel=1e-12)


def test_figures_of_labels_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    shown_NL = generator.random((120, 5)) < [0.1, 0.3, 0.5, 0.0, 0.2]
    probability_NL = (generator.integers(1, 6, size=(120, 5)) + 3 * shown_NL) / 10
    probability_NL[:, 3] = 0.1  # neither there nor predicted
    predicted_NL = probability_NL >= 0.5
    areas = [roc_auc_score(shown_NL[:, label], probability_NL[:, label]) for label in (0, 1, 2, 4)]
    likelier_NL, right_NL = np.maximum(probability_NL, 1 - probability_NL), predicted_NL == shown_NL
    assert label_metrics(probability_NL, shown_NL) == pytest.approx(
        {
            "macro_f1": f1_score(shown_NL, predicted_NL, average="macro", zero_division=np.nan),
            "auroc": np.mean(areas),
            "calibration_error": _loop_error(likelier_NL.ravel(), right_NL.ravel()),
        },
        abs=1e-12,
    )


def test_equal_scores_count_one_half() -> None:
    shown_N = np.array([True, False, True, False])
    assert area_under_roc(np.zeros(4), shown_N) == 0.5
    assert area_under_roc(np.array([1.0, 0.0, 0.0, 0.0]), shown_N) == 0.75
    assert area_under_roc(np.arange(4.0), np.ones(4, bool)) is None


def test_a_probability_at_the_border_of_two_bins_belongs_to_the_lower() -> None:
    third = 5 / 15
    right_N = np.array([True, False])
    assert calibration_error(np.array([third, third - 0.01]), right_N) == pytest.approx(abs(1 - 2 * third + 0.01) / 2)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
