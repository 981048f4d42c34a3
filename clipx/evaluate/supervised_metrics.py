"""How good predictions are, target by target, in float64.

Every function takes only rows whose target is there, and leaves a figure out where the rows do not define it: an area
with a single outcome, R2 of a constant. Predictions that are not numbers have no figures at all.

The calibration error is the expected calibration error of Guo and others (arXiv 1706.04599, equation 3): the rows are
put into 15 bins of equal width by the probability of what is predicted, and in each the share of right predictions is
compared with the mean probability.

The area under the ROC curve is the Mann-Whitney statistic (Hanley and McNeil, Radiology 143, 1982): the share of pairs
of a row with the outcome and one without that the score puts in the right order, where equal scores count one half. Of
several classes it is the mean over classes, each against the rest.

Shapes: N rows, K classes, L labels, U different scores.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Bins of the calibration error."""


def class_metrics(probability_NK: Floats, class_N: NDArray[np.int64]) -> dict[str, float]:
    """`accuracy`, `macro_f1` over the classes that are there or predicted, `auroc`, `calibration_error`.

    The most probable class is predicted; of equal ones the first.

    Args:
        probability_NK: of each class; a row sums to one.
        class_N: the right classes.
    """
    num_rows, num_classes = probability_NK.shape
    if num_rows == 0 or np.isnan(probability_NK).any():
        return {}
    predicted_N = probability_NK.argmax(axis=1)
    right_N = predicted_N == class_N
    true_K = np.bincount(class_N, minlength=num_classes)
    predicted_K = np.bincount(predicted_N, minlength=num_classes)
    hits_K = np.bincount(class_N[right_N], minlength=num_classes)
    return {
        "accuracy": float(right_N.mean()),
        **_macro_f1(hits_K, true_K, predicted_K),
        **_mean_area([area_under_roc(probability_NK[:, k], class_N == k) for k in range(num_classes)]),
        "calibration_error": calibration_error(probability_NK.max(axis=1), right_N),
    }


def number_metrics(predicted_N: Floats, true_N: Floats) -> dict[str, float]:
    """`mae`, in the unit of the numbers, and `r2`, the share of their variance that the predictions explain."""
    if len(true_N) == 0 or not np.isfinite(predicted_N).all():
        return {}
    figures = {"mae": float(np.abs(predicted_N - true_N).mean())}
    if true_N.min() < true_N.max():
        figures["r2"] = float(1 - np.square(predicted_N - true_N).mean() / true_N.var())
    return figures


def label_metrics(probability_NL: Floats, shown_NL: NDArray[np.bool_]) -> dict[str, float]:
    """`macro_f1`, `auroc`, `calibration_error` of labels of which a row has any number.

    A label is predicted where its probability is at least one half. `macro_f1` is the mean over the labels that are
    there or predicted, `auroc` that over the labels that some rows have and some have not. For `calibration_error`
    every label of every row is a prediction: that it is there, or that it is not.

    Args:
        probability_NL: of each label.
        shown_NL: which labels the rows have.
    """
    if probability_NL.size == 0 or np.isnan(probability_NL).any():
        return {}
    predicted_NL = probability_NL >= 0.5
    hits_L = (predicted_NL & shown_NL).sum(axis=0)
    areas = [area_under_roc(*columns) for columns in zip(probability_NL.T, shown_NL.T, strict=True)]
    likelier_NL = np.maximum(probability_NL, 1 - probability_NL)
    return {
        **_macro_f1(hits_L, shown_NL.sum(axis=0), predicted_NL.sum(axis=0)),
        **_mean_area(areas),
        "calibration_error": calibration_error(likelier_NL.ravel(), (predicted_NL == shown_NL).ravel()),
    }


def area_under_roc(score_N: Floats, shown_N: NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve of one outcome; None where all rows have it, or none has."""
    num_shown, num_rows = int(shown_N.sum()), len(shown_N)
    if num_shown in (0, num_rows):
        return None
    _, number_N, count_U = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_U = np.cumsum(count_U) - (count_U - 1) / 2  # equal scores share their mean rank
    above = rank_U[number_N][shown_N].sum() - num_shown * (num_shown + 1) / 2
    return float(above / (num_shown * (num_rows - num_shown)))


def calibration_error(probability_N: Floats, right_N: NDArray[np.bool_]) -> float:
    """The expected calibration error over 15 bins, each with its upper end."""
    bin_N = np.clip(np.ceil(probability_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    excess = np.bincount(bin_N, probability_N, BINS) - np.bincount(bin_N, right_N, BINS)
    return float(np.abs(excess).sum() / len(right_N))


def _macro_f1(hits_K: NDArray[np.int64], true_K: NDArray[np.int64], predicted_K: NDArray[np.int64]) -> dict[str, float]:
    """The mean over classes that occur of the harmonic mean of precision and recall."""
    occurs_K = true_K + predicted_K > 0
    if not occurs_K.any():
        return {}
    return {"macro_f1": float((2 * hits_K[occurs_K] / (true_K + predicted_K)[occurs_K]).mean())}


def _mean_area(areas: list[float | None]) -> dict[str, float]:
    known = [area for area in areas if area is not None]
    return {"auroc": float(np.mean(known))} if known else {}
