"""CLIP_benchmark's figures by their definitions, float64, on whole matrices (clip_benchmark/metrics of LAION-AI).

Its topk takes any of several equal scores; here the first one counts, as its argmax has it.
"""

import math
from collections.abc import Sequence

import numpy as np


def classification(score_NC: np.ndarray, label_N: Sequence[int]) -> dict[str, float]:
    """acc1, acc5 (NaN below five classes) and mean_per_class_recall: sklearn's balanced accuracy of the argmax."""
    order_NC = np.argsort(-score_NC, axis=1, kind="stable")
    labels = np.asarray(label_N)
    hits = order_NC == labels[:, None]
    recalls = [hits[labels == label, 0].mean() for label in sorted(set(label_N))]
    return {
        "acc1": float(hits[:, 0].mean()),
        "acc5": float(hits[:, :5].any(axis=1).mean()) if score_NC.shape[1] >= 5 else math.nan,
        "mean_per_class_recall": float(np.mean(recalls)),
    }


def retrieval(score_TN: np.ndarray, image_T: Sequence[int], depths: Sequence[int]) -> dict[str, float]:
    """Recall between T texts, one per line, and N images; text t is correct for image `image_T[t]` alone.

    A query is a hit at k if any of its k nearest is correct; an image without texts is none.
    """
    positive_TN = np.zeros(score_TN.shape, dtype=bool)
    positive_TN[np.arange(len(image_T)), image_T] = True
    figures = {}
    for name, scores, positives in (
        ("image_to_text", score_TN.T, positive_TN.T),
        ("text_to_image", score_TN, positive_TN),
    ):
        order = np.argsort(-scores, axis=1, kind="stable")
        ordered = np.take_along_axis(positives, order, axis=1)
        figures |= {f"{name}_recall@{k}": float(ordered[:, :k].any(axis=1).mean()) for k in depths}
    return figures
