"""Zero-shot classification on CLIP_benchmark's `wds_*` folders.

Shapes: B pictures of this rank, C classes, D embedding.
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
    """Classifies every picture as the class whose prompts are nearest.

    Args:
        pretrained: the model.
        folder: the set.
        batch_size: pictures or prompts per forward pass and rank.
        group: ranks that share the work.

    Returns:
        `acc1` and `acc5`, shares of the pictures whose class is among the nearest one and five, and
        `mean_per_class_recall`, the mean over classes with pictures of `acc1` within the class; the same on all ranks.
        Counted in integers: equal for every number of ranks.

    Raises:
        InputError: the folder breaks the layout, or a picture cannot be decoded.
    """
    with raise_on_all_ranks(group):
        data = open_classification_set(folder)
    num_classes = len(data.class_names)
    classes_CD = class_embeddings(
        pretrained, data.class_names, templates=data.templates, batch_size=batch_size, group=group
    )
    counts_3C = torch.zeros(3, num_classes, dtype=torch.int64, device=pretrained.device)
    pictures = read_labelled(data.shards, num_classes=num_classes)
    for own, image_BD in embed_images(pretrained, pictures, batch_size=batch_size, group=group):
        label_B = torch.tensor([picture.label for picture in own], dtype=torch.int64, device=pretrained.device)
        with torch.autocast(pretrained.device.type, enabled=False):  # in bf16 near classes would tie
            score_BC = image_BD @ classes_CD.T
        place_B = place_of_label(score_BC, label_B)
        hits_3B = torch.stack([torch.ones_like(place_B), place_B < 1, place_B < 5]).long()
        counts_3C.index_add_(1, label_B, hits_3B)
    return _figures(all_reduce(counts_3C, "sum", group))


def place_of_label(score_BC: Tensor, label_B: Tensor) -> Tensor:
    """How many other classes are not strictly below the right one, int64 (B,); 0 is a hit.

    Ties and NaN count against the model: one that gives every class the same score has learned nothing.
    """
    right_B1 = score_BC.gather(1, label_B[:, None])
    return (~(score_BC < right_B1)).sum(dim=1) - 1


def _figures(counts_3C: Tensor) -> dict[str, float]:
    pictures_C, top1_C, top5_C = counts_3C.cpu()
    seen_C = pictures_C > 0
    return {
        "acc1": int(top1_C.sum()) / int(pictures_C.sum()),
        "acc5": int(top5_C.sum()) / int(pictures_C.sum()),
        "mean_per_class_recall": float((top1_C[seen_C].double() / pictures_C[seen_C]).mean()),
    }
