"""Zero-shot classification of pictures of several classes each: mean average precision.

A class ranks all images by their similarity to its prompts. Its average precision is, as scikit-learn defines it, the
sum over thresholds n of (R_n - R_n-1) P_n, with precision P_n and recall R_n of the images that are at least as near:
the mean, over the images that show it, of the precision at their own similarity, which images of equal similarity
share. The mean is that over the classes that some image shows.

`like="clip_benchmark"` gives CLIP_benchmark's figure: images of equal similarity count one after the other in their
order, and a class that no image shows has 0 and counts.

Shapes: N images, C classes, K classes of a tile, R resamples, P images that show a class.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from clipx.data.labelled import MultiLabelSet
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.bootstrap import image_weights
from clipx.evaluate.features import features_of
from clipx.evaluate.options import EvaluateOptions, Evaluation, Like
from clipx.evaluate.zero_shot import DistinctClasses
from clipx.pretrained import Pretrained

NAME = "mean_average_precision"
_CLASSES = 16  # that a rank takes at once
_SCORES = 2**25  # similarities that are held at once: 128 MB
_RESAMPLED = 2 * 10**9  # similarities of all resamples: half a minute
_FEWEST = 200  # resamples that a percentile needs


def multi_label(
    pretrained: Pretrained, data: MultiLabelSet, options: EvaluateOptions, *, group: ProcessGroup | None
) -> Evaluation:
    """Ranks all images for every class; the ranks share the classes.

    Returns:
        `mean_average_precision`, the same on all ranks and for every number of them. Resamples are fewer than asked for
        where they would take longer than half a minute, and none where fewer than 200 would.

    Raises:
        InputError: an image or its classes are missing, or cannot be decoded.
    """
    features = features_of(pretrained, data, options, group=group)
    assert features.labels_NC is not None
    classes = DistinctClasses(pretrained, data.class_names, data.templates, options.batch_size, group=group)
    num_images, num_classes = features.labels_NC.shape
    resamples = min(options.resamples, _RESAMPLED // (num_images * num_classes))
    if resamples < _FEWEST:
        resamples = 0
    precision_RC = torch.zeros(1 + resamples, num_classes, dtype=torch.float64)
    for index_K, score_NK in _class_scores(classes, features.image_ND, group=group):
        rankings = [
            Ranking(score_N, features.labels_NC[:, index], by_order=options.like is not None)
            for index, score_N in zip(index_K, score_NK.T, strict=True)
        ]
        itself = np.ones((1, num_images), np.int64)
        for first, weights_RN in _numbered(chain([itself], image_weights(num_images, resamples=resamples))):
            for index, ranking in zip(index_K, rankings, strict=True):
                precision_R = torch.from_numpy(ranking.average_precision(weights_RN))
                precision_RC[first : first + len(weights_RN), index] = precision_R
    means_R = _mean(all_reduce(precision_RC.to(pretrained.device), "sum", group).cpu().numpy(), options.like)
    resampled = {NAME: means_R[1:]} if resamples else {}
    return Evaluation(task="zeroshot_multilabel_classification", metrics={NAME: float(means_R[0])}, resampled=resampled)


class Ranking:
    """All images from the nearest to the farthest for one class.

    Args:
        score_N: similarities; NaN counts against the model.
        shown_N: whether the image shows the class.
        by_order: of equal similarities the earlier image is the nearer one.
    """

    def __init__(self, score_N: NDArray[np.float32], shown_N: NDArray[np.bool_], *, by_order: bool = False) -> None:
        known_N = np.where(np.isnan(score_N), np.where(shown_N, -np.inf, np.inf), score_N)
        self._order_N = np.argsort(-known_N, kind="stable")
        self._shown_N = shown_N[self._order_N]
        self._place_P = np.flatnonzero(self._shown_N)
        if by_order:
            self._last_P = self._place_P
        else:
            falling_N = -known_N[self._order_N]
            self._last_P = np.searchsorted(falling_N, falling_N[self._place_P], side="right") - 1

    def average_precision(self, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        """Average precision where image i counts as often as its weight says; NaN where no image shows the class.

        Returns:
            float64 (R,).
        """
        weights_RN = weights_RN[:, self._order_N]
        seen_RP = np.cumsum(weights_RN, axis=1)[:, self._last_P]
        right_RP = np.cumsum(weights_RN * self._shown_N, axis=1)[:, self._last_P]
        weight_RP = weights_RN[:, self._place_P]
        precision_RP = np.divide(right_RP, seen_RP, out=np.zeros(seen_RP.shape), where=seen_RP > 0)
        total_R = weight_RP.sum(axis=1)
        sum_R = (weight_RP * precision_RP).sum(axis=1)
        return np.divide(sum_R, total_R, out=np.full(sum_R.shape, np.nan), where=total_R > 0)


def _class_scores(
    classes: DistinctClasses, image_ND: NDArray[np.float32], *, group: ProcessGroup | None
) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """Yields this rank's tiles of classes with the similarities of all images, float32 (N, K)."""
    num_classes = len(classes.number_C)
    size = max(1, min(_CLASSES, _SCORES // len(image_ND)))
    for start in range(rank(group) * size, num_classes, world_size(group) * size):
        index_K = range(start, min(start + size, num_classes))
        score_NK = np.empty((len(image_ND), len(index_K)), np.float32)
        for tile, score_BK in classes.scores(image_ND, only=index_K):
            score_NK[tile] = score_BK.cpu().numpy()
        yield index_K, score_NK


def _numbered(pieces: Iterable[NDArray[np.int64]]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The pieces, each with the number of resamples before it."""
    before = 0
    for piece_RN in pieces:
        yield before, piece_RN
        before += len(piece_RN)


def _mean(precision_RC: NDArray[np.float64], like: Like | None) -> NDArray[np.float64]:
    absent_RC = np.isnan(precision_RC)
    sums_R = np.where(absent_RC, 0, precision_RC).sum(axis=1)
    counts_R = absent_RC.shape[1] if like else np.maximum(1, (~absent_RC).sum(axis=1))
    return sums_R / counts_R
