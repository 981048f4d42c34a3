"""Zero-shot classification on CLIP_benchmark's `wds_*` folders.

Classes with equal prompts (ImageNet's list in CLIP_benchmark has two such pairs) have one embedding and one score to
the bit. As no model can tell them apart, the first of them has the credit, as torch's argmax gives it; that gives
CLIP_benchmark's figures, whose topk takes either of the two. Ties of classes with different prompts count against the
model, unless `like="clip_benchmark"` asks for the first of them, too.

Shapes: B images of this rank, C classes, U classes with different prompts, D embedding.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import open_classification_set, read_labelled
from clipx.distributed.collectives import all_reduce, raise_on_all_ranks
from clipx.evaluate.prompts import class_embeddings, prompt_numbers
from clipx.evaluate.retrieval import Like
from clipx.evaluate.sharing import embed_images
from clipx.pretrained import Pretrained


def zero_shot(
    pretrained: Pretrained, folder: Path, *, batch_size: int, group: ProcessGroup | None, like: Like | None = None
) -> dict[str, float]:
    """Classifies every image as the class with the nearest embedding of its prompts.

    Returns:
        `acc1` and `acc5`, the fractions of images with their class among the nearest one and five, and
        `mean_per_class_recall`, the mean over classes, if they have images, of `acc1` within the class. The same on all
        ranks, and for every number of ranks, because counts are integers. Of fewer than five classes, `acc5` like
        CLIP_benchmark's is NaN.

    Raises:
        InputError: the folder breaks the layout, or an image cannot be decoded.
    """
    with raise_on_all_ranks(group):
        data = open_classification_set(folder)
    num_classes = len(data.class_names)
    numbers = prompt_numbers(pretrained, data.class_names, templates=data.templates)
    first = dict(zip(reversed(numbers), reversed(data.class_names), strict=True))
    names = [first[number] for number in range(len(first))]
    distinct_UD = class_embeddings(pretrained, names, templates=data.templates, batch_size=batch_size, group=group)
    number_C = torch.tensor(numbers, device=pretrained.device)
    equals_C = torch.zeros_like(number_C) if like else number_C
    counts_3C = torch.zeros(3, num_classes, dtype=torch.int64, device=pretrained.device)
    images = read_labelled(data.shards, num_classes=num_classes)
    for block, image_BD in embed_images(pretrained, images, batch_size=batch_size, group=group):
        label_B = torch.tensor([image.label for image in block.local], dtype=torch.int64, device=pretrained.device)
        with torch.autocast(pretrained.device.type, enabled=False):  # in bf16 similar classes would tie
            score_BC = (image_BD @ distinct_UD.T)[:, number_C]
        above_B = num_classes_above(score_BC, label_B, equals_C=equals_C)
        known_B = ~score_BC.gather(1, label_B[:, None])[:, 0].isnan()
        hits_3B = torch.stack([torch.ones_like(known_B), known_B & (above_B < 1), known_B & (above_B < 5)]).long()
        counts_3C.index_add_(1, label_B, hits_3B)
    metrics = _metrics(all_reduce(counts_3C, "sum", group))
    return metrics | {"acc5": float("nan")} if like and num_classes < 5 else metrics


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


def _metrics(counts_3C: Tensor) -> dict[str, float]:
    images_C, top1_C, top5_C = counts_3C.cpu()
    seen_C = images_C > 0
    return {
        "acc1": int(top1_C.sum()) / int(images_C.sum()),
        "acc5": int(top5_C.sum()) / int(images_C.sum()),
        "mean_per_class_recall": float((top1_C[seen_C].double() / images_C[seen_C]).mean()),
    }
