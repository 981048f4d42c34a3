"""Zero-shot classification on CLIP_benchmark's `wds_*` folders.

Shapes: B images of this rank, C classes, D embedding.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import open_classification_set, read_labelled
from clipx.distributed.collectives import all_reduce, raise_on_all_ranks
from clipx.evaluate.prompts import class_embeddings
from clipx.evaluate.sharing import embed_images
from clipx.pretrained import Pretrained


def zero_shot(pretrained: Pretrained, folder: Path, *, batch_size: int, group: ProcessGroup | None) -> dict[str, float]:
    """Classifies every image as the class with the nearest embedding of its prompts.

    Returns:
        `acc1` and `acc5`, the fractions of images with their class among the nearest one and five, and
        `mean_per_class_recall`, the mean over classes, if they have images, of `acc1` within the class. The same on all
        ranks, and for every number of ranks, because counts are integers.

    Raises:
        InputError: the folder breaks the layout, or an image cannot be decoded.
    """
    with raise_on_all_ranks(group):
        data = open_classification_set(folder)
    num_classes = len(data.class_names)
    classes_CD = class_embeddings(
        pretrained, data.class_names, templates=data.templates, batch_size=batch_size, group=group
    )
    counts_3C = torch.zeros(3, num_classes, dtype=torch.int64, device=pretrained.device)
    images = read_labelled(data.shards, num_classes=num_classes)
    for local, image_BD in embed_images(pretrained, images, batch_size=batch_size, group=group):
        label_B = torch.tensor([image.label for image in local], dtype=torch.int64, device=pretrained.device)
        with torch.autocast(pretrained.device.type, enabled=False):  # in bf16 similar classes would tie
            score_BC = image_BD @ classes_CD.T
        above_B = num_classes_above(score_BC, label_B)
        hits_3B = torch.stack([torch.ones_like(above_B), above_B < 1, above_B < 5]).long()
        counts_3C.index_add_(1, label_B, hits_3B)
    return _metrics(all_reduce(counts_3C, "sum", group))


def num_classes_above(score_BC: Tensor, label_B: Tensor) -> Tensor:
    """The number of other classes that are not strictly below the correct one, int64 (B,); 0 is a hit.

    Ties and NaN count against the model: a model that gives all classes the same score has learned nothing.
    """
    correct_B1 = score_BC.gather(1, label_B[:, None])
    return (~(score_BC < correct_B1)).sum(dim=1) - 1


def _metrics(counts_3C: Tensor) -> dict[str, float]:
    images_C, top1_C, top5_C = counts_3C.cpu()
    seen_C = images_C > 0
    return {
        "acc1": int(top1_C.sum()) / int(images_C.sum()),
        "acc5": int(top5_C.sum()) / int(images_C.sum()),
        "mean_per_class_recall": float((top1_C[seen_C].double() / images_C[seen_C]).mean()),
    }
