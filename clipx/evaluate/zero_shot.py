"""Zero-shot classification of pictures of one class each.

Classes with equal prompts (ImageNet's list in CLIP_benchmark has two such pairs) have one embedding and one score to
the bit. As no model can tell them apart, the first of them has the credit, as torch's argmax gives it; that gives
CLIP_benchmark's figures, whose topk takes either of the two. Ties of classes with different prompts count against the
model, unless `like="clip_benchmark"` asks for the first of them, too.

Shapes: N images, B of a tile, C classes, U classes with different prompts, D embedding, R resamples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import ClassificationSet
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.bootstrap import outcome_counts
from clipx.evaluate.features import features_of
from clipx.evaluate.mapped_rows import read_rows
from clipx.evaluate.options import EvaluateOptions, Evaluation
from clipx.evaluate.prompts import class_embeddings, prompt_numbers
from clipx.pretrained import Pretrained

_TILE = 2048  # images that are compared with all classes at once
_NAN = 2**40  # classes before the right one, where no score is known


def zero_shot(
    pretrained: Pretrained, data: ClassificationSet, options: EvaluateOptions, *, group: ProcessGroup | None
) -> Evaluation:
    """Classifies every image as the class with the nearest embedding of its prompts.

    Returns:
        `acc1` and `acc5`, the fractions of images with their class among the nearest one and five, and
        `mean_per_class_recall`, the mean over classes, if they have images, of `acc1` within the class. The same on all
        ranks, and for every number of ranks, because counts are integers. Of fewer than five classes, `acc5` like
        CLIP_benchmark's is NaN.

    Raises:
        InputError: an image or its class is missing, or cannot be decoded.
    """
    features = features_of(pretrained, data, options, group=group)
    assert features.label_N is not None
    classes = DistinctClasses(pretrained, data.class_names, data.templates, options.batch_size, group=group)
    equals_C = torch.zeros_like(classes.number_C) if options.like else classes.number_C
    above_N, named_N = torch.zeros(2, len(features), dtype=torch.int64, device=pretrained.device)
    for tile, score_BC in classes.scores(features.image_ND, every=world_size(group), first=rank(group)):
        label_B = torch.from_numpy(features.label_N[tile]).to(pretrained.device)
        known_B = ~score_BC.gather(1, label_B[:, None])[:, 0].isnan()
        above_N[tile] = torch.where(known_B, num_classes_above(score_BC, label_B, equals_C=equals_C), _NAN)
        named_N[tile] = score_BC.argmax(dim=1)
    above_N, named_N = all_reduce(torch.stack([above_N, named_N]), "sum", group)
    metrics, resampled = accuracies(
        features.label_N, above_N.cpu().numpy(), num_classes=len(data.class_names), resamples=options.resamples
    )
    if options.like and len(data.class_names) < 5:
        metrics["acc5"] = float("nan")
        resampled.pop("acc5", None)
    derived = {"F1-macro_all": _macro_f1(features.label_N, named_N.cpu().numpy(), len(data.class_names))}
    return Evaluation(task="zeroshot_classification", metrics=metrics, derived=derived, resampled=resampled)


class DistinctClasses:
    """The embeddings of classes, one for all whose prompts are equal to the model."""

    def __init__(
        self,
        pretrained: Pretrained,
        class_names: Sequence[str],
        templates: Sequence[str],
        batch_size: int,
        *,
        group: ProcessGroup | None,
    ) -> None:
        numbers = prompt_numbers(pretrained, class_names, templates=templates)
        first = dict(zip(reversed(numbers), reversed(class_names), strict=True))
        names = [first[number] for number in range(len(first))]
        self.embedding_UD = class_embeddings(pretrained, names, templates=templates, batch_size=batch_size, group=group)
        self.number_C = torch.tensor(numbers, device=pretrained.device)
        """For each class the row of its embedding."""

    def scores(
        self, image_ND: NDArray[np.float32], *, every: int = 1, first: int = 0, only: range | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yields tiles of images with their similarities to classes, float32 (B, C).

        Tiles do not depend on the number of ranks, so the rounding of their products does not, either.

        Args:
            every: of so many tiles one is wanted, for a rank among others.
            first: the first of them.
            only: the classes; None means all.
        """
        number_C = self.number_C if only is None else self.number_C[only.start : only.stop]
        class_CD = self.embedding_UD if only is None else self.embedding_UD[number_C]
        device = class_CD.device
        for start in range(first * _TILE, len(image_ND), every * _TILE):
            tile = slice(start, min(start + _TILE, len(image_ND)))
            image_BD = torch.from_numpy(read_rows(image_ND, tile.start, tile.stop)).to(device)
            with torch.autocast(device.type, enabled=False):  # in bf16 similar classes would tie
                score_BC = image_BD @ class_CD.T
            yield tile, score_BC if only is not None else score_BC[:, number_C]


def num_classes_above(score_BC: Tensor, label_B: Tensor, *, equals_C: Tensor | None = None) -> Tensor:
    """The number of other classes that come before the correct one, int64 (B,); 0 is a hit.

    Of classes with the same number in `equals_C` and one score the earlier class comes first. Other ties count against
    the model, for one that gives all classes the same score has learned nothing; so does NaN, before which all come.
    """
    correct_B1 = score_BC.gather(1, label_B[:, None])
    before_BC = ~(score_BC < correct_B1)
    if equals_C is not None:
        later_BC = torch.arange(len(equals_C), device=label_B.device) > label_B[:, None]
        before_BC &= ~((score_BC == correct_B1) & (equals_C == equals_C[label_B][:, None]) & later_BC)
    return before_BC.sum(dim=1) - 1


def accuracies(
    label_N: NDArray[np.int64], above_N: NDArray[np.int64], *, num_classes: int, resamples: int = 0
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """`acc1`, `acc5` and `mean_per_class_recall`, and what each resample of the images has.

    Args:
        label_N: classes.
        above_N: for each image the number of classes that come before its own.
        num_classes: of the set.
        resamples: their number; 0 leaves the second dictionary empty.
    """
    counts_C3 = _outcomes(label_N, above_N, num_classes=num_classes)
    metrics = {name: float(value[0]) for name, value in _metrics(counts_C3[None]).items()}
    return metrics, _resampled(counts_C3, resamples=resamples)


def _outcomes(label_N: NDArray[np.int64], above_N: NDArray[np.int64], *, num_classes: int) -> NDArray[np.int64]:
    """Of each class the images that are hits at 1, only at 5, and not at all: int64 (C, 3)."""
    outcome_N = (above_N >= 1).astype(np.int64) + (above_N >= 5)
    return np.bincount(3 * label_N + outcome_N, minlength=3 * num_classes).reshape(num_classes, 3)


def _metrics(counts_RC3: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The figures of each resample, by name, float64 (R,)."""
    images_RC, top1_RC = counts_RC3.sum(axis=2), counts_RC3[:, :, 0]
    images_R = images_RC.sum(axis=1)
    recall_RC = np.divide(top1_RC, images_RC, out=np.zeros(images_RC.shape), where=images_RC > 0)
    return {
        "acc1": top1_RC.sum(axis=1) / images_R,
        "acc5": counts_RC3[:, :, :2].sum(axis=(1, 2)) / images_R,
        "mean_per_class_recall": recall_RC.sum(axis=1) / (images_RC > 0).sum(axis=1),
    }


def _resampled(counts_C3: NDArray[np.int64], *, resamples: int) -> dict[str, NDArray[np.float64]]:
    pieces = [
        _metrics(counts_RU.reshape(len(counts_RU), -1, 3))
        for counts_RU in outcome_counts(counts_C3.reshape(-1), resamples=resamples)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}


def _macro_f1(label_N: NDArray[np.int64], named_N: NDArray[np.int64], num_classes: int) -> float:
    """The mean of the F1 of all classes that have images, as WILDS has it for iWildCam."""
    images_C, named_C = np.bincount(label_N, minlength=num_classes), np.bincount(named_N, minlength=num_classes)
    right_C = np.bincount(label_N[label_N == named_N], minlength=num_classes)
    return float((2 * right_C / np.maximum(1, images_C + named_C))[images_C > 0].mean())
