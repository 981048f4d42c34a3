"""The score by which averages are chosen: one figure for each evaluation set, and the mean over the sets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.evaluate.multi_label import NAME
from clipx.evaluate.run import evaluate_folder
from clipx.pretrained import Pretrained

Scores = dict[str, float]
"""The main figure by the name of its set: accuracy, mean average precision, or the mean of both recalls at 10."""


class Judge:
    """A model that takes the weights of one average after the other, and scores each.

    Args:
        frame: has the architecture of all of them, and the device; its weights do not count.
        sets: folders in CLIP_benchmark's layout.
    """

    def __init__(self, frame: Pretrained, sets: Sequence[Path], *, batch_size: int, group: ProcessGroup | None) -> None:
        self._frame = frame
        self._sets = list(dict.fromkeys(sets))
        self._batch_size = batch_size
        self._group = group

    @torch.no_grad()
    def score(self, tensors: Iterable[tuple[str, Tensor]]) -> Scores:
        """The scores of a model with these weights, all it has, rounded to its dtype.

        Raises:
            InputError: a set breaks its layout, or a picture cannot be decoded.
        """
        weights = self._frame.model.state_dict()
        for name, tensor in tensors:
            weights[name].copy_(tensor)
        return {
            str(folder): main_figure(
                evaluate_folder(self._frame, folder, batch_size=self._batch_size, group=self._group)
            )
            for folder in self._sets
        }


def main_figure(metrics: Mapping[str, float]) -> float:
    """Of the metrics of a set the one that stands for it: `acc1`, mean average precision, or the mean recall at 10."""
    for name in ("acc1", NAME):
        if name in metrics:
            return metrics[name]
    return (metrics["image_to_text_recall@10"] + metrics["text_to_image_recall@10"]) / 2


def mean_score(scores: Scores) -> float:
    """The mean over the sets, each of which counts alike."""
    return sum(scores.values()) / len(scores)
